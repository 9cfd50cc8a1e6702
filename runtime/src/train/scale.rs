//! Loss scaling: small gradients survive half precision, and a step that overflows is skipped.

use crate::config::LossScale;
use kfc_graph::DType;

/// Good steps after which a dynamic scale doubles (as in NVIDIA's and PyTorch's scalers).
const GROWTH_INTERVAL: u64 = 2_000;
/// Where a dynamic scale starts, and its bounds.
const INITIAL: f64 = 65_536.0;
const LARGEST: f64 = 16_777_216.0;

/// The factor on the loss, and how it reacts.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(crate) struct LossScaler {
    /// The factor in force.
    pub(crate) scale: f64,
    /// Good steps since it last changed.
    pub(crate) good: u64,
    /// Steps skipped so far.
    pub(crate) skipped: u64,
    dynamic: bool,
}

impl LossScaler {
    /// The scaler of a configuration; without one, 256 for f16 and 1 otherwise.
    pub(crate) fn new(config: Option<LossScale>, dtype: DType) -> Self {
        let (scale, dynamic) = match config {
            Some(LossScale::Static(s)) => (s, false),
            Some(LossScale::Dynamic) => (INITIAL, true),
            None => (if dtype == DType::F16 { 256.0 } else { 1.0 }, false),
        };
        LossScaler { scale, good: 0, skipped: 0, dynamic }
    }

    /// Takes note of a step: `finite` is whether its gradients were.
    pub(crate) fn update(&mut self, finite: bool) {
        if !finite {
            self.skipped += 1;
            self.good = 0;
            if self.dynamic {
                self.scale = (self.scale / 2.0).max(1.0);
            }
            return;
        }
        self.good += 1;
        if self.dynamic && self.good >= GROWTH_INTERVAL {
            self.scale = (self.scale * 2.0).min(LARGEST);
            self.good = 0;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn dynamic_scale_halves_and_grows() {
        let mut s = LossScaler::new(Some(LossScale::Dynamic), DType::F16);
        s.update(false);
        assert_eq!((s.scale, s.skipped), (32_768.0, 1));
        (0..GROWTH_INTERVAL).for_each(|_| s.update(true));
        assert_eq!((s.scale, s.good), (65_536.0, 0));
        (0..40).for_each(|_| s.update(false));
        assert_eq!(s.scale, 1.0);
    }

    #[test]
    fn static_scale_stays() {
        let mut s = LossScaler::new(None, DType::F16);
        s.update(false);
        assert_eq!((s.scale, s.skipped), (256.0, 1));
        assert_eq!(LossScaler::new(None, DType::Bf16).scale, 1.0);
    }
}
