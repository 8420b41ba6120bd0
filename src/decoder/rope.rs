//! Rotary position embedding (Su et al. 2021) and the ways in which checkpoints stretch it.

use std::collections::BTreeMap;
use std::f32::consts::PI;

use super::DecoderError;
use super::keys::Keys;

/// How positions turn into angles.
#[derive(Debug, Clone, PartialEq)]
pub struct Rope {
    /// Base of the geometric series of wavelengths.
    pub theta: f32,
    /// How many of a head's first numbers turn; even. The rest stay as they are.
    pub width: usize,
    /// How the series is stretched to contexts longer than those trained on.
    pub scaling: RopeScaling,
}

/// A `rope_type` of transformers.
#[derive(Debug, Clone, PartialEq)]
pub enum RopeScaling {
    /// "default": not stretched. "mrope" is the same where all tokens are text.
    None,
    /// "linear": every frequency divided by one factor.
    Linear {
        /// The factor.
        factor: f32,
    },
    /// "dynamic": a larger base for sequences longer than those trained on, the larger the longer they are.
    Dynamic {
        /// The factor.
        factor: f32,
        /// Context length of pre-training.
        original: usize,
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
    /// "yarn" (Peng et al. 2023): a ramp over the pairs, and all angles' cosines and sines scaled.
    Yarn {
        /// The factor.
        factor: f32,
        /// The pairs between which the ramp lies: those before it are kept, those behind it divided by the factor.
        ramp: [f32; 2],
        /// What cosines and sines are multiplied by.
        magnitude: f32,
        /// Context length of pre-training.
        original: usize,
    },
    /// "longrope" (Ding et al. 2024): a divisor for every pair, one set for sequences up to a length, one for longer.
    LongRope {
        /// Divisors up to `original` tokens.
        short: Vec<f32>,
        /// Divisors for longer sequences.
        long: Vec<f32>,
        /// Context length of pre-training.
        original: usize,
        /// What cosines and sines are multiplied by.
        magnitude: f32,
    },
}

const KNOWN_TYPES: [&str; 8] = ["default", "linear", "dynamic", "llama3", "yarn", "longrope", "su", "mrope"];

/// What a family says about its rotary positions besides config.json.
#[derive(Debug, Clone, Copy)]
pub(super) struct RopeDefaults {
    /// The base where none is written down; `None` where it must be.
    pub(super) theta: Option<f32>,
    /// Width of a head.
    pub(super) head_dim: usize,
    /// The network may leave a part of each head unturned.
    pub(super) partial: bool,
    /// `max_position_embeddings`.
    pub(super) max_positions: usize,
}

impl Rope {
    /// Reads either dialect: `rope_parameters` (transformers 5) or `rope_theta` with `rope_scaling` (4).
    pub(super) fn read(keys: &Keys<'_>, defaults: RopeDefaults) -> Result<Self, DecoderError> {
        let own = match keys.object("rope_parameters")? {
            Some(own) => Some(own),
            None => keys.object("rope_scaling")?,
        };
        let Some(own) = own else {
            let (theta, width) = (theta(None, keys, defaults)?, rotary_width(&[keys], defaults)?);
            return Ok(Self { theta, width, scaling: RopeScaling::None });
        };
        let theta = theta(Some(&own), keys, defaults)?;
        let width = rotary_width(&[&own, keys], defaults)?;
        Ok(Self { theta, width, scaling: RopeScaling::read(&own, keys, theta, width, defaults)? })
    }

    /// Reads one object of a `rope_parameters` that holds one for each kind of layer.
    pub(super) fn read_nested(own: &Keys<'_>, keys: &Keys<'_>, defaults: RopeDefaults) -> Result<Self, DecoderError> {
        let (theta, width) = (theta(None, own, defaults)?, rotary_width(&[own, keys], defaults)?);
        Ok(Self { theta, width, scaling: RopeScaling::read(own, keys, theta, width, defaults)? })
    }

    /// Whether the angles of a sequence change when it grows from one length to another.
    pub(super) fn turns_otherwise(&self, from: usize, to: usize) -> bool {
        self.scaling.kind(from) != self.scaling.kind(to)
    }

    /// Angle per position of each pair, `[width / 2]`, in a sequence of `length` tokens.
    pub fn frequencies(&self, length: usize) -> Vec<f32> {
        let theta = self.theta * self.scaling.base_factor(self.width, length);
        let pairs = (0..self.width / 2).map(|pair| (pair, (2 * pair) as f32 / self.width as f32));
        pairs.map(|(pair, exponent)| self.scaling.stretch(1.0 / theta.powf(exponent), pair, length)).collect()
    }
}

/// `rope_theta`, from the first object that has it.
fn theta(own: Option<&Keys<'_>>, keys: &Keys<'_>, defaults: RopeDefaults) -> Result<f32, DecoderError> {
    let written = own.map(|own| own.optional_number("rope_theta")).transpose()?.flatten();
    if let Some(theta) = written.map_or_else(|| keys.optional_number("rope_theta"), |theta| Ok(Some(theta)))? {
        return Ok(theta);
    }
    defaults.theta.ok_or_else(|| keys.absent("rope_theta", "a number above 0"))
}

/// `partial_rotary_factor` of a head, from the first object that has it.
fn rotary_width(objects: &[&Keys<'_>], defaults: RopeDefaults) -> Result<usize, DecoderError> {
    let key = "partial_rotary_factor";
    let Some(keys) = objects.iter().find(|keys| keys.get(key).is_some()) else { return Ok(defaults.head_dim) };
    let share = keys.number(key)?;
    let width = (defaults.head_dim as f32 * share) as usize;
    match keys.get(key) {
        Some(found) if share > 1.0 || width < 2 || !width.is_multiple_of(2) => {
            Err(keys.wrong(key, &format!("a share of {} that is an even number above 0", defaults.head_dim), found))
        }
        Some(found) if share < 1.0 && !defaults.partial => Err(keys.unsupported(key, "1.0", &found.to_string())),
        _ => Ok(width),
    }
}

impl RopeScaling {
    fn read(
        own: &Keys<'_>,
        keys: &Keys<'_>,
        theta: f32,
        width: usize,
        defaults: RopeDefaults,
    ) -> Result<Self, DecoderError> {
        // Configurations before transformers 4.43 say "type".
        let key = if own.get("rope_type").is_some() { "rope_type" } else { "type" };
        let original = match keys.optional_size("original_max_position_embeddings")? {
            Some(original) => original,
            None => own.size_or("original_max_position_embeddings", defaults.max_positions)?,
        };
        match own.one_of(key, "default", &KNOWN_TYPES)? {
            "linear" => Ok(Self::Linear { factor: own.number("factor")? }),
            "dynamic" => Ok(Self::Dynamic { factor: own.number("factor")?, original: defaults.max_positions }),
            "llama3" => Self::read_llama3(own),
            "yarn" => Self::read_yarn(own, theta, width, original),
            "longrope" | "su" => Self::read_longrope(own, width, original, defaults.max_positions),
            _ => Ok(Self::None),
        }
    }

    fn read_llama3(own: &Keys<'_>) -> Result<Self, DecoderError> {
        let (low, high) = (own.number("low_freq_factor")?, own.number("high_freq_factor")?);
        if low >= high {
            let expected = format!("more than low_freq_factor, {low}");
            return Err(own.wrong("high_freq_factor", &expected, &high.into()));
        }
        let original = own.number("original_max_position_embeddings")?;
        Ok(Self::Llama3 { factor: own.number("factor")?, low, high, original })
    }

    fn read_yarn(own: &Keys<'_>, theta: f32, width: usize, original: usize) -> Result<Self, DecoderError> {
        let factor = own.number("factor")?;
        let of = |mscale: f32| if factor <= 1.0 { 1.0 } else { 0.1 * mscale * factor.ln() + 1.0 };
        let scales = (own.optional_number("mscale")?, own.optional_number("mscale_all_dim")?);
        let magnitude = match (own.optional_number("attention_factor")?, scales) {
            (Some(magnitude), _) => magnitude,
            (None, (Some(mscale), Some(all))) => of(mscale) / of(all),
            (None, _) => of(1.0),
        };
        // The pair that turns `rotations` times within the original context.
        let pair = |rotations: f32| width as f32 * (original as f32 / (rotations * 2.0 * PI)).ln() / (2.0 * theta.ln());
        let (mut low, mut high) = (pair(own.number_or("beta_fast", 32.0)?), pair(own.number_or("beta_slow", 1.0)?));
        if own.flag_or("truncate", true)? {
            (low, high) = (low.floor(), high.ceil());
        }
        let (low, high) = (low.max(0.0), high.min(width as f32 - 1.0));
        let high = if low == high { high + 0.001 } else { high };
        Ok(Self::Yarn { factor, ramp: [low, high], magnitude, original })
    }

    fn read_longrope(own: &Keys<'_>, width: usize, original: usize, most: usize) -> Result<Self, DecoderError> {
        let factor = own.number_or("factor", most as f32 / original as f32)?;
        let magnitude = match own.optional_number("attention_factor")? {
            Some(magnitude) => magnitude,
            None if factor <= 1.0 => 1.0,
            None => (1.0 + factor.ln() / (original as f32).ln()).sqrt(),
        };
        let (short, long) = (own.numbers("short_factor", width / 2)?, own.numbers("long_factor", width / 2)?);
        Ok(Self::LongRope { short, long, original, magnitude })
    }

    fn stretch(&self, frequency: f32, pair: usize, length: usize) -> f32 {
        match self {
            Self::None | Self::Dynamic { .. } => frequency,
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
            Self::Yarn { factor, ramp: [low, high], .. } => {
                let kept = 1.0 - ((pair as f32 - low) / (high - low)).clamp(0.0, 1.0);
                frequency / factor * (1.0 - kept) + frequency * kept
            }
            Self::LongRope { short, long, original, .. } => {
                let divisors = if length > *original { long } else { short };
                frequency / divisors.get(pair).copied().unwrap_or(1.0)
            }
        }
    }

    /// What the base is multiplied by in a sequence of `length` tokens.
    fn base_factor(&self, width: usize, length: usize) -> f32 {
        match self {
            Self::Dynamic { factor, original } if length > *original => {
                let grown = factor * length as f32 / *original as f32 - (factor - 1.0);
                grown.powf(width as f32 / (width as f32 - 2.0))
            }
            _ => 1.0,
        }
    }

    /// Sequences of one kind turn by the same angles.
    fn kind(&self, length: usize) -> usize {
        match self {
            Self::Dynamic { original, .. } if length > *original => length,
            Self::LongRope { original, .. } => usize::from(length > *original),
            _ => 0,
        }
    }

    /// The longest sequence that positions are stretched to, where config.json says `max_positions`.
    pub(super) fn longest(&self, max_positions: usize) -> usize {
        match self {
            Self::Dynamic { factor, original } => (*original as f32 * factor) as usize,
            Self::Yarn { factor, original, .. } => max_positions.max((*original as f32 * factor) as usize),
            _ => max_positions,
        }
    }

    fn magnitude(&self) -> f32 {
        match self {
            Self::Yarn { magnitude, .. } | Self::LongRope { magnitude, .. } => *magnitude,
            _ => 1.0,
        }
    }
}

/// Cosines and sines for sequences of certain lengths.
#[derive(Debug)]
pub(super) struct RopeTable<'a> {
    rope: &'a Rope,
    /// By the kind of sequence, as [`RopeScaling::kind`] tells them apart.
    angles: BTreeMap<usize, Angles>,
}

#[derive(Debug)]
struct Angles {
    half: usize,
    cos: Vec<f32>,
    sin: Vec<f32>,
}

impl<'a> RopeTable<'a> {
    /// A table for sequences of so many tokens each.
    pub(super) fn new(rope: &'a Rope, lengths: &[usize]) -> Self {
        let mut longest: BTreeMap<usize, usize> = BTreeMap::new();
        for length in lengths {
            let kind = longest.entry(rope.scaling.kind(*length)).or_default();
            *kind = (*kind).max(*length);
        }
        Self { rope, angles: longest.into_iter().map(|(kind, length)| (kind, Angles::new(rope, length))).collect() }
    }

    /// Turns a head in place by the angles of `position` in a sequence of `length` tokens; the pairs are (i, i + half),
    /// as Hugging Face stores them.
    pub(super) fn rotate(&self, head: &mut [f32], position: usize, length: usize) {
        self.turn(head, position, length, 1.0);
    }

    /// The transpose of [`Self::rotate`], which its gradient needs: turns back, and scales as that does.
    pub(super) fn rotate_back(&self, head: &mut [f32], position: usize, length: usize) {
        self.turn(head, position, length, -1.0);
    }

    fn turn(&self, head: &mut [f32], position: usize, length: usize, sign: f32) {
        if let Some(angles) = self.angles.get(&self.rope.scaling.kind(length)) {
            angles.turn(head, position, sign);
        }
    }
}

impl Angles {
    /// For the positions of a sequence of `length` tokens, and of shorter ones of its kind.
    fn new(rope: &Rope, length: usize) -> Self {
        let (frequencies, magnitude) = (rope.frequencies(length), rope.scaling.magnitude());
        let angles = (0..length).flat_map(|position| frequencies.iter().map(move |f| position as f32 * f));
        let scaled = |angle: f32| (angle.sin() * magnitude, angle.cos() * magnitude);
        let (sin, cos) = angles.map(scaled).unzip();
        Self { half: rope.width / 2, cos, sin }
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

    const DEFAULTS: RopeDefaults =
        RopeDefaults { theta: Some(10_000.0), head_dim: 8, partial: false, max_positions: 64 };

    fn read_with(config: serde_json::Value, defaults: RopeDefaults) -> Result<Rope, String> {
        let map = config.as_object().cloned().unwrap_or_default();
        Rope::read(&Keys::top(&map), defaults).map_err(|error| error.to_string())
    }

    fn read(config: serde_json::Value) -> Result<Rope, String> {
        read_with(config, DEFAULTS)
    }

    #[test]
    fn both_dialects_mean_the_same() {
        let llama3 = serde_json::json!({"rope_type": "llama3", "factor": 8.0, "low_freq_factor": 1.0,
            "high_freq_factor": 4.0, "original_max_position_embeddings": 16, "rope_theta": 500000.0});
        let old = serde_json::json!({"rope_theta": 500000.0, "rope_scaling": llama3});
        let new = serde_json::json!({"rope_parameters": llama3});
        assert_eq!(read(old), read(new));
        let linear = Rope { theta: 10_000.0, width: 8, scaling: RopeScaling::Linear { factor: 2.0 } };
        assert_eq!(read(serde_json::json!({"rope_scaling": {"type": "linear", "factor": 2}})), Ok(linear));
        let factors =
            serde_json::json!({"type": "longrope", "short_factor": [1, 1, 1, 1], "long_factor": [2, 3, 4, 5]});
        let outside = serde_json::json!({"original_max_position_embeddings": 16, "rope_scaling": factors});
        let found = read(outside).unwrap();
        let RopeScaling::LongRope { original, magnitude, .. } = found.scaling else { panic!("{found:?}") };
        assert_eq!(original, 16);
        assert!((magnitude - 1.5_f32.sqrt()).abs() < 1e-6, "sqrt(1 + ln 4 / ln 16), found {magnitude}");
    }

    #[test]
    fn what_is_not_computed_is_refused_by_name() {
        for name in ["axial", "proportional", "ntk-by-parts"] {
            let error = read(serde_json::json!({"rope_scaling": {"rope_type": name, "factor": 2.0}})).unwrap_err();
            assert!(error.contains(name) && error.contains("rope_scaling.rope_type"), "{error}");
        }
        let partial = serde_json::json!({"rope_parameters": {"rope_theta": 1e4, "partial_rotary_factor": 0.5}});
        assert!(read(partial.clone()).unwrap_err().contains("partial_rotary_factor"));
        assert_eq!(read_with(partial, RopeDefaults { partial: true, ..DEFAULTS }).unwrap().width, 4);
        let missing = serde_json::json!({"rope_scaling": {"rope_type": "linear"}});
        assert!(read(missing).unwrap_err().contains("rope_scaling.factor"));
        let short =
            serde_json::json!({"rope_scaling": {"rope_type": "su", "short_factor": [1.0], "long_factor": [1.0]}});
        assert!(read(short).unwrap_err().contains("short_factor"));
    }

    #[test]
    fn turning_back_undoes_turning() {
        let rope = Rope { theta: 100.0, width: 6, scaling: RopeScaling::None };
        let table = RopeTable::new(&rope, &[9]);
        let head = [1.0, -2.0, 3.0, 0.5, 0.25, -0.125, 7.0];
        let mut turned = head;
        table.rotate(&mut turned, 8, 9);
        assert!(head.iter().zip(&turned).take(6).any(|(a, b)| (a - b).abs() > 0.1));
        assert_eq!(turned[6].to_bits(), head[6].to_bits(), "beyond the width nothing turns");
        table.rotate_back(&mut turned, 8, 9);
        for (a, b) in head.iter().zip(&turned) {
            assert!((a - b).abs() < 1e-6, "{a} {b}");
        }
    }

    #[test]
    fn a_longer_sequence_turns_by_the_long_divisors() {
        let scaling = RopeScaling::LongRope { short: vec![1.0], long: vec![2.0], original: 4, magnitude: 1.0 };
        let rope = Rope { theta: 10.0, width: 2, scaling };
        let table = RopeTable::new(&rope, &[4, 8]);
        let (mut short, mut long) = ([1.0, 0.0], [1.0, 0.0]);
        table.rotate(&mut short, 2, 4);
        table.rotate(&mut long, 2, 8);
        assert!((short[0] - 2.0_f32.cos()).abs() < 1e-6 && (long[0] - 1.0_f32.cos()).abs() < 1e-6);
    }
}
