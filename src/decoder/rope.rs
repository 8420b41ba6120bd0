//! Rotary position embedding (Su et al. 2021) and the ways in which checkpoints stretch it.

use std::f32::consts::PI;

use super::DecoderError;
use super::keys::Keys;

/// How positions turn into angles.
#[derive(Debug, Clone, PartialEq)]
pub struct Rope {
    /// Base of the geometric series of wavelengths.
    pub theta: f32,
    /// How the series is stretched to contexts longer than those trained on.
    pub scaling: RopeScaling,
}

/// A `rope_type` of transformers.
#[derive(Debug, Clone, PartialEq)]
pub enum RopeScaling {
    /// "default": not stretched.
    None,
    /// "linear": every frequency divided by one factor.
    Linear {
        /// The factor.
        factor: f32,
    },
    /// "llama3": low frequencies divided by the factor, high ones kept, a smooth ramp between.
    Llama3 {
        /// The factor.
        factor: f32,
        /// Wavelengths above `original / low` are stretched in full.
        low: f32,
        /// Wavelengths below `original / high` are kept.
        high: f32,
        /// Context length of pre-training.
        original: f32,
    },
}

const KNOWN_TYPES: [&str; 3] = ["default", "linear", "llama3"];

impl Rope {
    /// Reads either dialect: `rope_parameters` (transformers 5) or `rope_theta` with `rope_scaling` (4).
    ///
    /// `default_theta` is what the architecture has always used when no base is written down.
    pub(super) fn read(keys: Keys<'_>, default_theta: f32) -> Result<Self, DecoderError> {
        let written_theta = keys.number_or("rope_theta", default_theta)?;
        let own = match keys.object("rope_parameters")? {
            Some(own) => Some(own),
            None => keys.object("rope_scaling")?,
        };
        let Some(own) = own else { return Ok(Self { theta: written_theta, scaling: RopeScaling::None }) };
        if let Some(share) = own.get("partial_rotary_factor").filter(|share| share.as_f64() != Some(1.0)) {
            return Err(own.unsupported("partial_rotary_factor", "1.0", &share.to_string()));
        }
        let theta = own.number_or("rope_theta", written_theta)?;
        Ok(Self { theta, scaling: RopeScaling::read(own)? })
    }

    /// Angle per position of each pair of a head of `head_dim` numbers, `[head_dim / 2]`.
    pub fn frequencies(&self, head_dim: usize) -> Vec<f32> {
        let pairs = (0..head_dim / 2).map(|pair| (2 * pair) as f32 / head_dim as f32);
        pairs.map(|exponent| self.scaling.stretch(1.0 / self.theta.powf(exponent))).collect()
    }
}

impl RopeScaling {
    fn read(own: Keys<'_>) -> Result<Self, DecoderError> {
        // Configurations before transformers 4.43 say "type".
        let key = if own.get("rope_type").is_some() { "rope_type" } else { "type" };
        match own.one_of(key, "default", &KNOWN_TYPES)? {
            "linear" => Ok(Self::Linear { factor: own.number("factor")? }),
            "llama3" => Self::read_llama3(own),
            _ => Ok(Self::None),
        }
    }

    fn read_llama3(own: Keys<'_>) -> Result<Self, DecoderError> {
        let (low, high) = (own.number("low_freq_factor")?, own.number("high_freq_factor")?);
        if low >= high {
            let expected = format!("more than low_freq_factor, {low}");
            return Err(own.wrong("high_freq_factor", &expected, &high.into()));
        }
        let original = own.number("original_max_position_embeddings")?;
        Ok(Self::Llama3 { factor: own.number("factor")?, low, high, original })
    }

    fn stretch(&self, frequency: f32) -> f32 {
        match *self {
            Self::None => frequency,
            Self::Linear { factor } => frequency / factor,
            Self::Llama3 { factor, low, high, original } => {
                let wavelength = 2.0 * PI / frequency;
                if wavelength < original / high {
                    frequency
                } else if wavelength > original / low {
                    frequency / factor
                } else {
                    let smooth = (original / wavelength - low) / (high - low);
                    (1.0 - smooth) * frequency / factor + smooth * frequency
                }
            }
        }
    }
}

/// Cosines and sines of the first positions.
#[derive(Debug)]
pub(super) struct RopeTable {
    half: usize,
    cos: Vec<f32>,
    sin: Vec<f32>,
}

impl RopeTable {
    pub(super) fn new(rope: &Rope, head_dim: usize, positions: usize) -> Self {
        let frequencies = rope.frequencies(head_dim);
        let angles = (0..positions).flat_map(|position| frequencies.iter().map(move |f| position as f32 * f));
        let (sin, cos) = angles.map(f32::sin_cos).unzip();
        Self { half: head_dim / 2, cos, sin }
    }

    /// Turns a head in place by the angles of `position`; the pairs are (i, i + half), as Hugging Face stores them.
    pub(super) fn rotate(&self, head: &mut [f32], position: usize) {
        self.turn(head, position, 1.0);
    }

    /// Turns a head back: the transpose of [`Self::rotate`], which its gradient needs.
    pub(super) fn rotate_back(&self, head: &mut [f32], position: usize) {
        self.turn(head, position, -1.0);
    }

    fn turn(&self, head: &mut [f32], position: usize, sign: f32) {
        let span = position * self.half..(position + 1) * self.half;
        let (Some(cos), Some(sin)) = (self.cos.get(span.clone()), self.sin.get(span)) else { return };
        let (first, second) = head.split_at_mut(self.half.min(head.len()));
        for (((a, b), cos), sin) in first.iter_mut().zip(second).zip(cos).zip(sin) {
            let (x, y, sin) = (*a, *b, sign * *sin);
            *a = x * cos - y * sin;
            *b = y * cos + x * sin;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read(config: serde_json::Value) -> Result<Rope, String> {
        let map = config.as_object().cloned().unwrap_or_default();
        Rope::read(Keys::top(&map), 10_000.0).map_err(|error| error.to_string())
    }

    #[test]
    fn both_dialects_mean_the_same() {
        let llama3 = serde_json::json!({"rope_type": "llama3", "factor": 8.0, "low_freq_factor": 1.0,
            "high_freq_factor": 4.0, "original_max_position_embeddings": 16, "rope_theta": 500000.0});
        let old = serde_json::json!({"rope_theta": 500000.0, "rope_scaling": llama3});
        let new = serde_json::json!({"rope_parameters": llama3});
        assert_eq!(read(old), read(new));
        let linear = Rope { theta: 10_000.0, scaling: RopeScaling::Linear { factor: 2.0 } };
        assert_eq!(read(serde_json::json!({"rope_scaling": {"type": "linear", "factor": 2}})), Ok(linear));
    }

    #[test]
    fn what_is_not_computed_is_refused_by_name() {
        for name in ["dynamic", "yarn", "longrope", "su"] {
            let error = read(serde_json::json!({"rope_scaling": {"rope_type": name, "factor": 2.0}})).unwrap_err();
            assert!(error.contains(name) && error.contains("rope_scaling.rope_type"), "{error}");
        }
        let partial = serde_json::json!({"rope_parameters": {"rope_theta": 1e4, "partial_rotary_factor": 0.5}});
        assert!(read(partial).unwrap_err().contains("partial_rotary_factor"));
        let missing = serde_json::json!({"rope_scaling": {"rope_type": "linear"}});
        assert!(read(missing).unwrap_err().contains("rope_scaling.factor"));
    }

    #[test]
    fn turning_back_undoes_turning() {
        let rope = Rope { theta: 100.0, scaling: RopeScaling::None };
        let table = RopeTable::new(&rope, 6, 9);
        let head = [1.0, -2.0, 3.0, 0.5, 0.25, -0.125];
        let mut turned = head;
        table.rotate(&mut turned, 8);
        assert!(head.iter().zip(&turned).any(|(a, b)| (a - b).abs() > 0.1));
        table.rotate_back(&mut turned, 8);
        for (a, b) in head.iter().zip(&turned) {
            assert!((a - b).abs() < 1e-6, "{a} {b}");
        }
    }
}
