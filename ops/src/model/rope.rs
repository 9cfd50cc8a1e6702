//! Rotary position embedding tables: default, linear, llama3 and YaRN frequencies, as transformers computes them
//! (`modeling_rope_utils.py`).

use std::f64::consts::PI;

/// Rotary embedding of a model.
#[derive(Clone, Debug, PartialEq)]
pub struct Rope {
    /// Rotated width of a head; even.
    pub head_dim: usize,
    /// Base of the frequencies.
    pub theta: f64,
    /// How they are stretched for long contexts.
    pub kind: RopeKind,
}

/// Stretching of rotary frequencies.
#[derive(Clone, Debug, PartialEq)]
pub enum RopeKind {
    /// Not stretched.
    Default,
    /// Positions divided by `factor`.
    Linear {
        /// Stretch.
        factor: f64,
    },
    /// Low frequencies divided by `factor`, high ones kept, smooth between (Llama 3.1).
    Llama3 {
        /// Stretch.
        factor: f64,
        /// Wavelengths above `original / low_freq_factor` are stretched whole.
        low_freq_factor: f64,
        /// Wavelengths below `original / high_freq_factor` are kept.
        high_freq_factor: f64,
        /// Context the model was first trained with.
        original: f64,
    },
    /// YaRN (Peng et al. 2023): a ramp between kept and stretched frequencies, and a factor on cos and sin.
    Yarn {
        /// Stretch.
        factor: f64,
        /// Context the model was first trained with.
        original: f64,
        /// Rotations over the context above which a frequency is kept.
        beta_fast: f64,
        /// Rotations below which it is stretched whole.
        beta_slow: f64,
        /// DeepSeek's magnitude scale.
        mscale: Option<f64>,
        /// Its counterpart in the softmax scale.
        mscale_all_dim: Option<f64>,
        /// Factor on cos and sin, when given outright.
        attention_factor: Option<f64>,
        /// Whether the ramp's ends are rounded outwards.
        truncate: bool,
    },
}

impl Rope {
    /// Angle a position of each pair of dimensions: `head_dim / 2` values.
    pub fn inverse_frequencies(&self) -> Vec<f64> {
        let half = self.head_dim / 2;
        let plain: Vec<f64> =
            (0..half).map(|i| self.theta.powf(-((2 * i) as f64) / self.head_dim as f64)).collect();
        match &self.kind {
            RopeKind::Default => plain,
            RopeKind::Linear { factor } => plain.into_iter().map(|f| f / factor).collect(),
            RopeKind::Llama3 { factor, low_freq_factor, high_freq_factor, original } => plain
                .into_iter()
                .map(|f| {
                    let wavelength = 2.0 * PI / f;
                    if wavelength < original / high_freq_factor {
                        f
                    } else if wavelength > original / low_freq_factor {
                        f / factor
                    } else {
                        let smooth =
                            (original / wavelength - low_freq_factor) / (high_freq_factor - low_freq_factor);
                        (1.0 - smooth) * f / factor + smooth * f
                    }
                })
                .collect(),
            RopeKind::Yarn { factor, original, beta_fast, beta_slow, truncate, .. } => {
                let (low, high) = self.ramp(*original, *beta_fast, *beta_slow, *truncate);
                plain
                    .into_iter()
                    .enumerate()
                    .map(|(i, f)| {
                        let stretched = ((i as f64 - low) / (high - low)).clamp(0.0, 1.0);
                        f / factor * stretched + f * (1.0 - stretched)
                    })
                    .collect()
            }
        }
    }

    /// Factor on cos and sin.
    pub fn attention_factor(&self) -> f64 {
        let RopeKind::Yarn { factor, mscale, mscale_all_dim, attention_factor, .. } = &self.kind else {
            return 1.0;
        };
        let magnitude = |m: f64| if *factor <= 1.0 { 1.0 } else { 0.1 * m * factor.ln() + 1.0 };
        match (attention_factor, mscale, mscale_all_dim) {
            (Some(given), _, _) => *given,
            (None, Some(m), Some(all)) if *m != 0.0 && *all != 0.0 => magnitude(*m) / magnitude(*all),
            _ => magnitude(1.0),
        }
    }

    /// Tables `cos` and `sin`, each `[positions, head_dim / 2]` row-major.
    ///
    /// Frequencies and angles are rounded to `f32` as in transformers, so that far positions agree too.
    pub fn tables(&self, positions: usize) -> (Vec<f32>, Vec<f32>) {
        let frequencies: Vec<f32> = self.inverse_frequencies().into_iter().map(|f| f as f32).collect();
        let factor = self.attention_factor() as f32;
        let mut cos = Vec::with_capacity(positions * frequencies.len());
        let mut sin = Vec::with_capacity(positions * frequencies.len());
        for p in 0..positions {
            for &f in &frequencies {
                let angle = f64::from(p as f32 * f);
                cos.push(angle.cos() as f32 * factor);
                sin.push(angle.sin() as f32 * factor);
            }
        }
        (cos, sin)
    }

    /// First and last pair of YaRN's ramp.
    fn ramp(&self, original: f64, beta_fast: f64, beta_slow: f64, truncate: bool) -> (f64, f64) {
        let dim = self.head_dim as f64;
        let pair = |rotations: f64| dim * (original / (rotations * 2.0 * PI)).ln() / (2.0 * self.theta.ln());
        let (mut low, mut high) = (pair(beta_fast), pair(beta_slow));
        if truncate {
            (low, high) = (low.floor(), high.ceil());
        }
        (low, high) = (low.max(0.0), high.min(dim - 1.0));
        if low == high { (low, high + 0.001) } else { (low, high) }
    }
}
