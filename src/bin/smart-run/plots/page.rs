//! Several charts in one file: a page of cards, or one picture.

use smart_run::Result;

use super::{Chart, SIZE, svg};

/// All charts in one SVG document, one below the other.
pub fn sheet(charts: &[Chart]) -> Result<String> {
    let count = charts.len().max(1);
    svg((SIZE.0, SIZE.1 * count as u32), |area| {
        for (chart, part) in charts.iter().zip(area.split_evenly((count, 1))) {
            chart.draw(&part)?;
        }
        Ok(())
    })
}

/// A page that needs nothing else: `facts` as paragraphs, then a card for each chart.
pub fn page(title: &str, facts: &[String], charts: &[Chart]) -> Result<String> {
    let mut html = format!(
        "<!DOCTYPE html>\n<html lang=\"en\">\n<head>\n<meta charset=\"utf-8\">\n\
         <meta name=\"viewport\" content=\"width=device-width, initial-scale=1\">\n<title>{title}</title>\n\
         <style>\n{STYLE}</style>\n</head>\n<body>\n<h1>{title}</h1>\n",
        title = escape(title)
    );
    for fact in facts {
        html.push_str(&format!("<p>{}</p>\n", escape(fact)));
    }
    html.push_str("<main>\n");
    for chart in charts {
        html.push_str(&format!("<figure>{}</figure>\n", chart.svg()?));
    }
    html.push_str("</main>\n</body>\n</html>\n");
    Ok(html)
}

/// Cards stay light in the dark: their colours are chosen for that.
const STYLE: &str = "\
:root { color-scheme: light dark; }
body { margin: 24px auto; max-width: 1600px; padding: 0 16px; font: 15px/1.5 system-ui, sans-serif;
  background: #f0eee8; color: #22262b; }
h1 { font-size: 22px; margin: 0 0 8px; }
p { margin: 2px 0; }
main { display: grid; grid-template-columns: repeat(auto-fill, minmax(min(100%, 700px), 1fr)); gap: 16px; margin-top: 16px; }
figure { margin: 0; background: #fcfbf8; border-radius: 8px; overflow: hidden; border: 1px solid #dedbd2; }
figure svg { display: block; width: 100%; height: auto; }
@media (prefers-color-scheme: dark) {
  body { background: #16181b; color: #e6e4de; }
  figure { border-color: #3a3d42; }
}
";

fn escape(text: &str) -> String {
    text.replace('&', "&amp;").replace('<', "&lt;").replace('>', "&gt;").replace('"', "&quot;")
}
