//! Learning-rate schedules, as in transformers' `optimization.py`.

use crate::config::Schedule;

/// Learning rate of 0-based `step` of `total`: linear warm-up from 0, then the schedule.
pub fn learning_rate(schedule: Schedule, peak: f64, warmup: usize, total: usize, step: usize) -> f64 {
    if step < warmup {
        return peak * step as f64 / warmup.max(1) as f64;
    }
    let left = total.saturating_sub(warmup).max(1) as f64;
    let progress = (step - warmup) as f64 / left;
    peak * match schedule {
        Schedule::Constant => 1.0,
        Schedule::Linear => (1.0 - progress).max(0.0),
        Schedule::Cosine => (0.5 * (1.0 + (std::f64::consts::PI * progress).cos())).max(0.0),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn follows_transformers() {
        // get_cosine_schedule_with_warmup(opt, 2, 6) at lr 1e-2
        let cosine: Vec<f64> = (0..6).map(|s| learning_rate(Schedule::Cosine, 1e-2, 2, 6, s)).collect();
        let expected = [0.0, 5e-3, 1e-2, 8.535_533_905_932_738e-3, 5e-3, 1.464_466_094_067_262_4e-3];
        for (a, b) in cosine.iter().zip(expected) {
            assert!((a - b).abs() < 1e-15, "{cosine:?}");
        }
        assert_eq!(learning_rate(Schedule::Linear, 1.0, 0, 4, 3), 0.25);
        assert_eq!(learning_rate(Schedule::Constant, 0.5, 2, 4, 1), 0.25);
        assert_eq!(learning_rate(Schedule::Constant, 0.5, 2, 4, 9), 0.5);
    }
}
