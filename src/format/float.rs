//! Element types as numbers: exact widening to `f32`, one rounding back (to nearest, ties to even).

use crate::tensor::Dtype;

/// An element type of `N` little-endian bytes.
pub(crate) trait Element<const N: usize> {
    /// The element's value, exact.
    fn widen(bytes: [u8; N]) -> f32;
    /// The nearest element, ties to even; overflow gives infinity.
    fn narrow(value: f32) -> [u8; N];
    /// The exponent field of the element's bits.
    fn exponent(bits: u32) -> u32;
}

/// bfloat16.
pub(crate) struct Bf16;
/// IEEE 754 binary16.
pub(crate) struct F16;
/// IEEE 754 binary32.
pub(crate) struct F32;

impl Element<2> for Bf16 {
    fn widen(bytes: [u8; 2]) -> f32 {
        f32::from_bits(u32::from(u16::from_le_bytes(bytes)) << 16)
    }

    /// What `half` computes, without its branches: folding is the price of applying a patch, and this way the compiler
    /// rounds several weights at a time.
    fn narrow(value: f32) -> [u8; 2] {
        let bits = value.to_bits();
        // Half a unit in the last place, and the last bit itself: so ties go to even, and carries into the exponent.
        let rounded = bits.wrapping_add(0x7fff + (bits >> 16 & 1)) >> 16;
        // A quiet NaN stays one; rounded, its carry could run into the sign.
        let nan = bits >> 16 | 0x40;
        (if value.is_nan() { nan } else { rounded } as u16).to_le_bytes()
    }

    fn exponent(bits: u32) -> u32 {
        bits >> 7 & 0xff
    }
}

impl Element<2> for F16 {
    fn widen(bytes: [u8; 2]) -> f32 {
        half::f16::from_le_bytes(bytes).to_f32()
    }

    fn narrow(value: f32) -> [u8; 2] {
        half::f16::from_f32(value).to_le_bytes()
    }

    fn exponent(bits: u32) -> u32 {
        bits >> 10 & 0x1f
    }
}

impl Element<4> for F32 {
    fn widen(bytes: [u8; 4]) -> f32 {
        f32::from_le_bytes(bytes)
    }

    fn narrow(value: f32) -> [u8; 4] {
        value.to_le_bytes()
    }

    fn exponent(bits: u32) -> u32 {
        bits >> 23 & 0xff
    }
}

/// `value` rounded to `dtype`, as `f32`.
pub(crate) fn rounded(dtype: Dtype, value: f32) -> f32 {
    match dtype {
        Dtype::Bf16 => Bf16::widen(Bf16::narrow(value)),
        Dtype::F16 => F16::widen(F16::narrow(value)),
        Dtype::F32 => value,
    }
}

/// Appends `values`, each rounded to `dtype`.
pub(crate) fn write_all(dtype: Dtype, values: &[f32], out: &mut Vec<u8>) {
    match dtype {
        Dtype::Bf16 => out.extend(values.iter().flat_map(|value| Bf16::narrow(*value))),
        Dtype::F16 => out.extend(values.iter().flat_map(|value| F16::narrow(*value))),
        Dtype::F32 => out.extend(values.iter().flat_map(|value| F32::narrow(*value))),
    }
}

/// The elements in `bytes`; bytes after the last whole element are left out.
pub(crate) fn read_all(dtype: Dtype, bytes: &[u8]) -> Vec<f32> {
    match dtype {
        Dtype::Bf16 => bytes.as_chunks().0.iter().map(|cell| Bf16::widen(*cell)).collect(),
        Dtype::F16 => bytes.as_chunks().0.iter().map(|cell| F16::widen(*cell)).collect(),
        Dtype::F32 => bytes.as_chunks().0.iter().map(|cell| F32::widen(*cell)).collect(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The slow, plain twin: the finite 16-bit pattern nearest to `value`, ties to the even one, by search over all.
    fn nearest(widen: fn([u8; 2]) -> f32, value: f32) -> u16 {
        let mut best = (f64::INFINITY, u16::MAX);
        for bits in 0..=u16::MAX {
            let candidate = widen(bits.to_le_bytes());
            if !candidate.is_finite() || candidate.is_sign_negative() != value.is_sign_negative() {
                continue;
            }
            let distance = (f64::from(candidate) - f64::from(value)).abs();
            if distance < best.0 || (distance == best.0 && bits % 2 == 0) {
                best = (distance, bits);
            }
        }
        best.1
    }

    #[test]
    fn widening_then_narrowing_keeps_every_number() {
        for bits in 0..=u16::MAX {
            let bytes = bits.to_le_bytes();
            if Bf16::widen(bytes).is_finite() {
                assert_eq!(Bf16::narrow(Bf16::widen(bytes)), bytes, "bf16 {bits:#06x}");
            }
            if F16::widen(bytes).is_finite() {
                assert_eq!(F16::narrow(F16::widen(bytes)), bytes, "f16 {bits:#06x}");
            }
        }
    }

    #[test]
    fn narrowing_is_to_nearest_ties_to_even() {
        // Between neighbours of bfloat16 and of binary16, small, large, subnormal, and not between.
        let halfway = [0x3f80_8000, 0x3f81_8000, 0xbf80_8000, 0x3f80_1000, 0x3f80_3000, 0x001b_3910, 0x3300_cf46]
            .map(f32::from_bits)
            .into_iter()
            .chain([-0.0, 8.940_697e-8, 65_504.0, 0.1, 1e-3]);
        for value in halfway {
            assert_eq!(u16::from_le_bytes(Bf16::narrow(value)), nearest(Bf16::widen, value), "bf16 {value}");
            assert_eq!(u16::from_le_bytes(F16::narrow(value)), nearest(F16::widen, value), "f16 {value}");
        }
        assert!(F16::widen(F16::narrow(65_520.0)).is_infinite(), "halfway to 2^16 rounds to infinity");
        assert_eq!(F16::widen(F16::narrow(65_519.996)), 65_504.0);
    }

    #[test]
    fn bf16_is_rounded_as_half_rounds_it() {
        let same = |bits: u32| {
            let value = f32::from_bits(bits);
            assert_eq!(Bf16::narrow(value), half::bf16::from_f32(value).to_le_bytes(), "{bits:08x}");
        };
        // Every upper half, with what lies on and beside each border of the lower.
        for upper in 0..=u16::MAX {
            for lower in [0, 1, 0x7fff, 0x8000, 0x8001, 0xffff] {
                same(u32::from(upper) << 16 | lower);
            }
            // `half` quiets a NaN; no NaN is ever folded.
            let (ours, theirs) = (Bf16::widen(upper.to_le_bytes()), half::bf16::from_bits(upper).to_f32());
            assert!(ours.to_bits() == theirs.to_bits() || (ours.is_nan() && theirs.is_nan()), "{upper:04x}");
        }
        (0..1 << 20).for_each(|step: u32| same(step.wrapping_mul(0x9e37_79b1)));
    }
}
