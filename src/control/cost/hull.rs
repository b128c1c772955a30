//! [`Hull`]: what passes cost on average, where every pass is as wide as pays.
#![forbid(unsafe_code)]

/// Largest convex function that lies nowhere above a staircase. Rounds go up to edges and seldom stop right behind one: three rows that are as
/// dear as four are as good as never run, and rounds that have three on average have two or four. So a mean of rows is priced between the
/// corners that rounds choose among, not at the stair that it would stand on.
#[derive(Clone, Debug, Default)]
pub(in crate::control) struct Hull {
    /// (rows, ns), ascending, slopes between them rising.
    corners: Vec<(f64, f64)>,
}

impl Hull {
    /// Becomes that of a table of treads: entry `i` is the time of `i * tread` rows; entry 0 is not read.
    pub fn refit(&mut self, tread: usize, ns: &[u64]) {
        self.corners.clear();
        for (i, &ns) in ns.iter().enumerate().skip(1) {
            let new = ((i * tread) as f64, ns as f64);
            while let [.., first, middle] = self.corners[..]
                && slope(first, middle) >= slope(middle, new)
            {
                self.corners.pop();
            }
            self.corners.push(new);
        }
    }

    /// Time of `rows` rows, in nanoseconds; beyond the table as at its end.
    pub fn at(&self, rows: f64) -> f64 {
        let after = self.corners.partition_point(|corner| corner.0 < rows);
        match (after.checked_sub(1).map(|before| self.corners[before]), self.corners.get(after)) {
            (Some(before), Some(&next)) => before.1 + slope(before, next) * (rows - before.0),
            (Some(end), None) => end.1,
            (None, first) => first.map_or(0.0, |first| first.1),
        }
    }
}

fn slope(from: (f64, f64), to: (f64, f64)) -> f64 {
    (to.1 - from.1) / (to.0 - from.0)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn hull(tread: usize, ns: &[u64]) -> Hull {
        let mut hull = Hull::default();
        hull.refit(tread, ns);
        hull
    }

    #[test]
    fn rows_behind_an_edge_cost_what_those_around_them_do() {
        // Three rows as dear as four, five to eight alike.
        let hull = hull(1, &[0, 500, 520, 740, 740, 1300, 1300, 1300, 1300]);
        let corners: Vec<f64> = hull.corners.iter().map(|corner| corner.0).collect();
        assert_eq!(corners, [1.0, 2.0, 4.0, 8.0]);
        let around = [1.0, 1.5, 3.0, 6.0, 8.0].map(|rows| hull.at(rows));
        assert_eq!(around, [500.0, 510.0, 630.0, 1020.0, 1300.0]);
        assert_eq!((hull.at(0.2), hull.at(9.0)), (500.0, 1300.0));
    }

    #[test]
    fn it_lies_below_the_table_and_touches_its_ends() {
        let mut random = crate::replay::random::Random(5);
        for tread in [1, 8] {
            let mut ns = vec![0_u64];
            for _ in 0..40 {
                let step = 1 + random.below(3) * random.below(200);
                ns.push(ns.last().unwrap() + step as u64);
            }
            let hull = hull(tread, &ns);
            let off = |i: usize| hull.at((i * tread) as f64) - ns[i] as f64;
            assert!((1..ns.len()).all(|i| off(i) <= 1e-6));
            assert!(off(1).abs() < 1e-6 && off(ns.len() - 1).abs() < 1e-6);
            assert!(hull.corners.windows(3).all(|w| slope(w[0], w[1]) < slope(w[1], w[2])));
        }
        assert_eq!(Hull::default().at(3.0), 0.0);
    }
}
