//! Charts as SVG: lines, points and bars over labelled axes, alone or as a page of cards.
//!
//! ```text
//! let chart = Chart::new("Target pass", Axis::linear("tokens"), Axis::linear("time (us)"))
//!     .with(Series::line("fitted", 0, fitted))
//!     .with(Series::points("measured", 0, measured));
//! let page = page("Costs", &["One H200.".into()], &[chart])?;
//! ```

mod page;

use plotters::coord::types::RangedCoordf64;
use plotters::prelude::*;
use plotters::style::text_anchor::{HPos, Pos, VPos};

use smart_run::{Error, Result};

pub use page::{page, sheet};

/// Size of a chart in pixels.
const SIZE: (u32, u32) = (760, 420);
/// Free space around the plot: left of it, right, above, below.
const MARGINS: (u32, u32, u32, u32) = (84, 24, 74, 60);
const FONT: &str = "system-ui, sans-serif";

const BACKGROUND: RGBColor = RGBColor(0xfc, 0xfb, 0xf8);
const INK: RGBColor = RGBColor(0x22, 0x26, 0x2b);
const FAINT_INK: RGBColor = RGBColor(0x5c, 0x63, 0x6b);
const GRID: RGBColor = RGBColor(0xe4, 0xe2, 0xdc);
const MARK: RGBColor = RGBColor(0xc9, 0xc5, 0xba);
/// Told apart by people who are colour-blind, too (after Okabe and Ito).
const COLOURS: [RGBColor; 6] = [
    RGBColor(0x00, 0x72, 0xb2),
    RGBColor(0xd5, 0x5e, 0x00),
    RGBColor(0x00, 0x9e, 0x73),
    RGBColor(0xaa, 0x44, 0x99),
    RGBColor(0xb8, 0x86, 0x0b),
    RGBColor(0x55, 0x5b, 0x61),
];

/// One axis.
#[derive(Clone, Debug)]
pub struct Axis {
    label: String,
    log: bool,
    names: Vec<String>,
}

impl Axis {
    /// Linear, from 0.
    pub fn linear(label: impl Into<String>) -> Self {
        Self { label: label.into(), log: false, names: vec![] }
    }

    /// Logarithmic; values must be positive.
    pub fn log(label: impl Into<String>) -> Self {
        Self { log: true, ..Self::linear(label) }
    }

    /// Named places 0, 1, 2, ... for bars.
    pub fn categories(label: impl Into<String>, names: Vec<String>) -> Self {
        Self { names, ..Self::linear(label) }
    }

    fn place(&self, value: f64) -> f64 {
        if self.log { value.log2() } else { value }
    }

    /// First and last place of an axis that shows `values`.
    fn range(&self, values: impl Iterator<Item = f64>) -> (f64, f64) {
        if !self.names.is_empty() {
            return (-0.5, self.names.len() as f64 - 0.5);
        }
        let (low, high) =
            values.fold((f64::INFINITY, 0.0), |(low, high): (f64, f64), v| (low.min(v), high.max(v)));
        match (self.log, low.is_finite() && high > 0.0) {
            (_, false) => (0.0, 1.0),
            (true, true) => (self.place(low) - 0.15, self.place(high) + 0.15),
            (false, true) => (0.0, 1.04 * high),
        }
    }

    /// Values to label, within a range of places.
    fn ticks(&self, (low, high): (f64, f64)) -> Vec<f64> {
        if self.log {
            let every = ((high - low) / 8.0).ceil().max(1.0) as usize;
            return (low.ceil() as i64..=high.floor() as i64)
                .step_by(every)
                .map(|p| (p as f64).exp2())
                .collect();
        }
        let rough = (high - low) / 8.0;
        let power = 10f64.powf(rough.log10().floor());
        let step = [1.0, 2.0, 5.0, 10.0].map(|digit| digit * power).into_iter().find(|step| *step >= rough);
        let step = step.unwrap_or(rough);
        (0..=20).map(|i| f64::from(i) * step).filter(|tick| *tick <= high).collect()
    }
}

/// How a series is drawn.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Look {
    Line,
    Points,
    Bars,
}

/// Named data, (x, y).
#[derive(Clone, Debug)]
pub struct Series {
    name: String,
    colour: usize,
    look: Look,
    data: Vec<(f64, f64)>,
    /// Vertical bars: x, from y, to y.
    spread: Vec<(f64, f64, f64)>,
}

impl Series {
    /// A line through `data`.
    pub fn line(name: impl Into<String>, colour: usize, data: Vec<(f64, f64)>) -> Self {
        Self { name: name.into(), colour, look: Look::Line, data, spread: Vec::new() }
    }

    /// Dots at `data`.
    pub fn points(name: impl Into<String>, colour: usize, data: Vec<(f64, f64)>) -> Self {
        Self { look: Look::Points, ..Self::line(name, colour, data) }
    }

    /// Bars from 0, over the places of [`Axis::categories`].
    pub fn bars(name: impl Into<String>, colour: usize, data: Vec<(f64, f64)>) -> Self {
        Self { look: Look::Bars, ..Self::line(name, colour, data) }
    }

    /// How far each value may be off, as (x, from, to).
    pub fn spread(mut self, spread: Vec<(f64, f64, f64)>) -> Self {
        self.spread = spread;
        self
    }

    fn colour(&self) -> RGBColor {
        COLOURS[self.colour % COLOURS.len()]
    }
}

/// A chart.
#[derive(Clone, Debug)]
pub struct Chart {
    title: String,
    note: String,
    x: Axis,
    y: Axis,
    series: Vec<Series>,
    marks: Vec<f64>,
}

type Area<'a> = DrawingArea<SVGBackend<'a>, plotters::coord::Shift>;
type Plot<'a, 'b> = ChartContext<'b, SVGBackend<'a>, Cartesian2d<RangedCoordf64, RangedCoordf64>>;

impl Chart {
    /// An empty chart.
    pub fn new(title: impl Into<String>, x: Axis, y: Axis) -> Self {
        Self { title: title.into(), note: String::new(), x, y, series: vec![], marks: vec![] }
    }

    /// A few words beside the title.
    pub fn note(mut self, note: impl Into<String>) -> Self {
        self.note = note.into();
        self
    }

    /// One more series; without data it is left out.
    pub fn with(mut self, series: Series) -> Self {
        self.series.extend(Some(series).filter(|series| !series.data.is_empty()));
        self
    }

    /// Vertical marks at these values of x.
    pub fn marked(mut self, marks: Vec<f64>) -> Self {
        self.marks = marks;
        self
    }

    /// The chart as an SVG document.
    pub fn svg(&self) -> Result<String> {
        svg(SIZE, |area| self.draw(area))
    }

    fn draw<'a>(&self, area: &Area<'a>) -> std::result::Result<(), Failure<'a>> {
        let (left, right, above, below) = MARGINS;
        let data = || self.series.iter().flat_map(|series| &series.data);
        let x_range = self.x.range(data().map(|point| point.0));
        let ends = self.series.iter().flat_map(|series| series.spread.iter().map(|bar| bar.2));
        let y_range = self.y.range(data().map(|point| point.1).chain(ends));
        area.fill(&BACKGROUND)?;
        let text = |words: &str, size: u32, colour: &RGBColor, at: (i32, i32), pos: Pos| {
            let style = (FONT, size).into_text_style(area).color(colour).pos(pos);
            area.draw(&Text::new(words.to_owned(), at, style))
        };
        let at_left = Pos::new(HPos::Left, VPos::Top);
        text(&self.title, 17, &INK, (16, 12), at_left)?;
        let (width, height) = area.dim_in_pixel();
        text(
            &self.note,
            12,
            &FAINT_INK,
            (width as i32 - right as i32, 16),
            Pos::new(HPos::Right, VPos::Top),
        )?;

        let mut plot = ChartBuilder::on(area)
            .margin_left(left)
            .margin_right(right)
            .margin_top(above)
            .margin_bottom(below)
            .build_cartesian_2d(x_range.0..x_range.1, y_range.0..y_range.1)?;
        let path = |plot: &mut Plot<'a, '_>, from, to, colour: &RGBColor| {
            plot.draw_series([PathElement::new(vec![from, to], colour.stroke_width(1))]).map(|_| ())
        };
        let origin = area.get_base_pixel();
        let pixel = |plot: &Plot<'a, '_>, at: (f64, f64)| {
            let (x, y) = plot.backend_coord(&at);
            (x - origin.0, y - origin.1)
        };
        let bottom = height as i32 - below as i32;
        for tick in self.y.ticks(y_range) {
            let y = self.y.place(tick);
            path(&mut plot, (x_range.0, y), (x_range.1, y), &GRID)?;
            let at = (left as i32 - 8, pixel(&plot, (x_range.0, y)).1);
            text(&number(tick), 12, &FAINT_INK, at, Pos::new(HPos::Right, VPos::Center))?;
        }
        let centred = Pos::new(HPos::Center, VPos::Top);
        if self.x.names.is_empty() {
            for tick in self.x.ticks(x_range) {
                let x = self.x.place(tick);
                path(&mut plot, (x, y_range.0), (x, y_range.1), &GRID)?;
                let at = (pixel(&plot, (x, y_range.0)).0, bottom + 8);
                text(&number(tick), 12, &FAINT_INK, at, centred)?;
            }
        }
        for (place, name) in self.x.names.iter().enumerate() {
            // Names of two lines are split at a line feed.
            for (line, words) in name.lines().enumerate() {
                let at = (pixel(&plot, (place as f64, y_range.0)).0, bottom + 7 + 14 * line as i32);
                text(words, 12, &FAINT_INK, at, centred)?;
            }
        }
        for &mark in &self.marks {
            let x = self.x.place(mark);
            if x > x_range.0 && x < x_range.1 {
                path(&mut plot, (x, y_range.0), (x, y_range.1), &MARK)?;
            }
        }
        for series in &self.series {
            self.draw_series(&mut plot, series)?;
            // A bar says its height.
            for &(x, y) in series.data.iter().filter(|_| series.look == Look::Bars) {
                let at = pixel(&plot, (self.x.place(x), self.y.place(y)));
                text(&number(y), 12, &INK, (at.0, at.1 - 4), Pos::new(HPos::Center, VPos::Bottom))?;
            }
        }
        path(&mut plot, (x_range.0, y_range.0), (x_range.1, y_range.0), &FAINT_INK)?;
        text(&self.x.label, 13, &INK, ((left + width - right) as i32 / 2, height as i32 - 24), centred)?;
        let upright = (FONT, 13).into_text_style(area).color(&INK).transform(FontTransform::Rotate270);
        let middle = (above as i32 + bottom) / 2;
        area.draw(&Text::new(self.y.label.clone(), (14, middle), upright.pos(centred)))?;
        self.draw_legend(area, text)
    }

    fn draw_series<'a>(
        &self,
        plot: &mut Plot<'a, '_>,
        series: &Series,
    ) -> std::result::Result<(), Failure<'a>> {
        let colour = series.colour();
        for &(x, from, to) in &series.spread {
            let (x, from, to) = (self.x.place(x), self.y.place(from), self.y.place(to));
            plot.draw_series([PathElement::new(vec![(x, from), (x, to)], colour.stroke_width(1))])?;
        }
        let placed = series.data.iter().map(|&(x, y)| (self.x.place(x), self.y.place(y)));
        match series.look {
            Look::Line => {
                plot.draw_series(LineSeries::new(placed, colour.stroke_width(2)))?;
            }
            Look::Points => {
                plot.draw_series(placed.map(|at| Circle::new(at, 4, colour.filled())))?;
            }
            Look::Bars => {
                let floor = self.y.place(0.0).max(plot.y_range().start);
                plot.draw_series(
                    placed.map(|(x, y)| Rectangle::new([(x - 0.34, floor), (x + 0.34, y)], colour.filled())),
                )?;
            }
        }
        Ok(())
    }

    /// Names of the series in a row of their own above the plot.
    fn draw_legend<'a>(
        &self,
        area: &Area<'a>,
        text: impl Fn(&str, u32, &RGBColor, (i32, i32), Pos) -> std::result::Result<(), Failure<'a>>,
    ) -> std::result::Result<(), Failure<'a>> {
        const Y: i32 = 52;
        let mut x = MARGINS.0 as i32;
        for series in &self.series {
            let colour = series.colour();
            match series.look {
                Look::Line => {
                    area.draw(&PathElement::new(vec![(x, Y), (x + 20, Y)], colour.stroke_width(2)))?
                }
                Look::Points => area.draw(&Circle::new((x + 10, Y), 4, colour.filled()))?,
                Look::Bars => {
                    area.draw(&Rectangle::new([(x + 4, Y - 6), (x + 16, Y + 6)], colour.filled()))?
                }
            }
            text(&series.name, 12, &INK, (x + 26, Y), Pos::new(HPos::Left, VPos::Center))?;
            // Letters are some 6.3 pixels wide at this size.
            x += 26 + (6.3 * series.name.chars().count() as f64) as i32 + 22;
        }
        Ok(())
    }
}

/// What drawing into a string can fail with.
type Failure<'a> = DrawingAreaErrorKind<<SVGBackend<'a> as DrawingBackend>::ErrorType>;

fn svg(
    size: (u32, u32),
    draw: impl for<'a> FnOnce(&Area<'a>) -> std::result::Result<(), Failure<'a>>,
) -> Result<String> {
    let mut document = String::new();
    {
        let area = SVGBackend::with_string(&mut document, size).into_drawing_area();
        let drawn = draw(&area).and_then(|()| area.present());
        drawn.map_err(|error| Error::Device(format!("a chart cannot be drawn: {error}")))?;
    }
    Ok(document)
}

/// A number with about three digits, thousands apart.
pub fn number(value: f64) -> String {
    let decimals = match value.abs() {
        0.0 => 0,
        small if small < 0.1 => 4,
        small if small < 1.0 => 2,
        small if small < 10.0 && small.fract() != 0.0 => 2,
        small if small < 100.0 && small.fract() != 0.0 => 1,
        _ => 0,
    };
    let plain = format!("{value:.decimals$}");
    let (whole, rest) = plain.split_at(plain.find('.').unwrap_or(plain.len()));
    let digits = whole.trim_start_matches('-').len();
    let mut text = String::new();
    for (index, digit) in whole.trim_start_matches('-').chars().enumerate() {
        if index > 0 && (digits - index) % 3 == 0 {
            text.push(' ');
        }
        text.push(digit);
    }
    // Zeros behind the point say nothing on an axis.
    let rest = if rest.is_empty() { rest } else { rest.trim_end_matches('0').trim_end_matches('.') };
    format!("{}{text}{rest}", if value < 0.0 { "-" } else { "" })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_are_short_and_readable() {
        for (value, text) in [
            (0.0, "0"),
            (0.0123, "0.0123"),
            (0.5, "0.5"),
            (3.456, "3.46"),
            (20.0, "20"),
            (37.26, "37.3"),
            (412.4, "412"),
            (12_345.0, "12 345"),
            (1e6, "1 000 000"),
            (-1500.0, "-1 500"),
        ] {
            assert_eq!(number(value), text);
        }
    }

    #[test]
    fn ticks_lie_within_the_axis_and_are_few() {
        for high in [0.37, 1.0, 7.0, 64.0, 128.0, 3900.0, 1e6] {
            let axis = Axis::linear("x");
            let range = axis.range([0.0, high].into_iter());
            let ticks = axis.ticks(range);
            assert!((4..=12).contains(&ticks.len()), "{high}: {ticks:?}");
            assert!(ticks.iter().all(|tick| (0.0..=range.1).contains(tick)));
            let axis = Axis::log("x");
            let ticks = axis.ticks(axis.range([1.0, 1.0 + high].into_iter()));
            assert!(!ticks.is_empty() && ticks.len() < 12, "{high}: {ticks:?}");
        }
    }

    #[test]
    fn a_chart_names_its_axes_and_series_and_draws_every_point() {
        let chart = Chart::new("Title & more", Axis::log("rows"), Axis::linear("time (us)"))
            .with(Series::line("fitted", 0, vec![(1.0, 2.0), (8.0, 4.0)]))
            .with(Series::points("measured", 1, vec![(1.0, 2.0), (2.0, 2.5), (8.0, 4.0)]))
            .with(Series::points("nothing", 2, vec![]));
        let svg = chart.svg().unwrap();
        for part in ["Title &amp; more", "rows", "time (us)", "fitted", "measured"] {
            assert!(svg.contains(part), "{part} is missing");
        }
        assert!(!svg.contains("nothing"), "a series without data has no legend");
        // Three points and one in the legend.
        assert_eq!(svg.matches("<circle").count(), 4);
        let page = page("A <page>", &["5 > 4".into()], &[chart.clone(), chart]).unwrap();
        assert_eq!(page.matches("<svg").count(), 2);
        assert!(page.contains("A &lt;page&gt;") && page.contains("5 &gt; 4"));
        assert!(!page.contains("http-equiv") && !page.contains("<script") && !page.contains("src="));
    }

    #[test]
    fn an_empty_chart_is_drawn_too() {
        let chart = Chart::new("", Axis::log("x"), Axis::log("y"));
        assert!(chart.svg().unwrap().contains("<svg"));
        assert!(sheet(&[]).unwrap().contains("<svg"));
    }
}
