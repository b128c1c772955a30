//! [`Conditions`]: the clocks, power and temperature under which something was measured, and what they say about it in words.
//!
//! Plain data: `device::conditions` reads it from the GPU's management library.
#![forbid(unsafe_code)]

use std::fmt;

use serde::{Deserialize, Serialize};

/// A state of the GPU; what the management library does not tell is absent.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct Reading {
    /// Clock of the multiprocessors, MHz.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub sm_mhz: Option<u32>,
    /// Clock of the memory, MHz.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub memory_mhz: Option<u32>,
    /// Power drawn, W.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub power_w: Option<u32>,
    /// Power limit in force, W.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub power_limit_w: Option<u32>,
    /// Share of the last sample period in which a kernel ran, %.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub utilisation: Option<u32>,
    /// Temperature of the chip, degrees Celsius.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub temperature_c: Option<u32>,
    /// What holds the clocks down at this moment.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub slowdowns: Vec<Slowdown>,
}

/// Why clocks are lower than they could be; an idle GPU's are not held down.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Slowdown {
    /// The power limit.
    PowerCap,
    /// Heat, as the driver sees it.
    Heat,
    /// Heat, as the hardware sees it: clocks are halved or less.
    HardwareHeat,
    /// The power supply asks for less.
    PowerBrake,
    /// Another hardware protection.
    Hardware,
    /// The slowest GPU of a group.
    SyncBoost,
    /// A limit that someone has set.
    ClockSetting,
}

impl fmt::Display for Slowdown {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Slowdown::PowerCap => "the power limit",
            Slowdown::Heat => "heat",
            Slowdown::HardwareHeat => "heat (hardware protection)",
            Slowdown::PowerBrake => "the power supply",
            Slowdown::Hardware => "hardware protection",
            Slowdown::SyncBoost => "another GPU of its group",
            Slowdown::ClockSetting => "a clock setting",
        })
    }
}

/// Two states of the GPU, from the start and the end of a measurement.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct Conditions {
    /// At the start.
    pub start: Reading,
    /// At the end.
    pub end: Reading,
}

impl Conditions {
    /// What makes the measurement doubtful, a sentence each; empty for a GPU that ran free at steady clocks.
    pub fn remarks(&self) -> Vec<String> {
        let mut remarks = Vec::new();
        let mut causes: Vec<String> = Vec::new();
        for slowdown in self.start.slowdowns.iter().chain(&self.end.slowdowns) {
            let cause = slowdown.to_string();
            if !causes.contains(&cause) {
                causes.push(cause);
            }
        }
        if !causes.is_empty() {
            remarks.push(format!(
                "the GPU was held back by {}: it can be faster than this",
                causes.join(" and ")
            ));
        }
        let clocks = [
            ("multiprocessor", self.start.sm_mhz, self.end.sm_mhz),
            ("memory", self.start.memory_mhz, self.end.memory_mhz),
        ];
        for (which, start, end) in clocks {
            if let (Some(start), Some(end)) = (start, end)
                && differ(start, end)
            {
                remarks.push(format!(
                    "the {which} clock went from {start} to {end} MHz while this was measured: measure again on a GPU that is warm and unshared"
                ));
            }
        }
        remarks
    }
}

/// Whether two clocks are further apart than a steady one wanders.
fn differ(a: u32, b: u32) -> bool {
    const STEADY: f64 = 0.03;
    f64::from(a.abs_diff(b)) > STEADY * f64::from(a.max(b))
}

impl fmt::Display for Reading {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let power = match (self.power_w, self.power_limit_w) {
            (Some(power), Some(limit)) => Some(format!("{power} of {limit} W")),
            (power, _) => power.map(|power| format!("{power} W")),
        };
        let parts = [
            self.sm_mhz.map(|mhz| format!("{mhz} MHz")),
            self.memory_mhz.map(|mhz| format!("memory {mhz} MHz")),
            power,
            self.temperature_c.map(|degrees| format!("{degrees} C")),
            self.utilisation.map(|share| format!("{share} % busy")),
        ];
        let told: Vec<String> = parts.into_iter().flatten().collect();
        f.write_str(if told.is_empty() { "unknown" } else { "" })?;
        f.write_str(&told.join(", "))
    }
}

impl fmt::Display for Conditions {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} at the start; {} at the end", self.start, self.end)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn free(sm_mhz: u32) -> Reading {
        Reading {
            sm_mhz: Some(sm_mhz),
            memory_mhz: Some(3201),
            power_w: Some(412),
            power_limit_w: Some(700),
            utilisation: Some(98),
            temperature_c: Some(54),
            slowdowns: vec![],
        }
    }

    #[test]
    fn a_free_gpu_at_steady_clocks_gives_no_remark() {
        let conditions = Conditions { start: free(1980), end: free(1965) };
        assert_eq!(conditions.remarks(), Vec::<String>::new());
        assert_eq!(
            conditions.to_string(),
            "1980 MHz, memory 3201 MHz, 412 of 700 W, 54 C, 98 % busy at the start; \
             1965 MHz, memory 3201 MHz, 412 of 700 W, 54 C, 98 % busy at the end"
        );
    }

    #[test]
    fn a_throttled_gpu_is_called_so_once_per_cause() {
        let mut conditions = Conditions { start: free(1400), end: free(1400) };
        conditions.start.slowdowns = vec![Slowdown::PowerCap];
        conditions.end.slowdowns = vec![Slowdown::PowerCap, Slowdown::Heat];
        assert_eq!(
            conditions.remarks(),
            ["the GPU was held back by the power limit and heat: it can be faster than this"]
        );
    }

    #[test]
    fn a_clock_that_moved_is_named_with_both_values() {
        let conditions = Conditions { start: free(345), end: free(1980) };
        let remarks = conditions.remarks();
        assert_eq!(remarks.len(), 1, "the memory clock did not move: {remarks:?}");
        assert!(remarks[0].starts_with("the multiprocessor clock went from 345 to 1980 MHz"), "{remarks:?}");
    }

    #[test]
    fn what_is_not_known_is_neither_shown_nor_complained_about() {
        let start = Reading { sm_mhz: Some(1980), ..Reading::default() };
        let conditions = Conditions { start, end: Reading::default() };
        assert_eq!(conditions.remarks(), Vec::<String>::new());
        assert_eq!(conditions.to_string(), "1980 MHz at the start; unknown at the end");
        let text = serde_json::to_string(&conditions).unwrap();
        assert_eq!(text, r#"{"start":{"sm_mhz":1980},"end":{}}"#);
        assert_eq!(serde_json::from_str::<Conditions>(&text).unwrap(), conditions);
    }
}
