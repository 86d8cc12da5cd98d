//! Elements of one float type as elements of another.

use std::borrow::Cow;

use half::{bf16, f16};

/// Element types that weights come in.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Element {
    /// IEEE 754's half precision.
    F16,
    /// The upper half of f32.
    Bf16,
    /// Single precision.
    F32,
    /// Double precision.
    F64,
}

impl Element {
    /// Bytes.
    pub fn width(self) -> u64 {
        match self {
            Self::F16 | Self::Bf16 => 2,
            Self::F32 => 4,
            Self::F64 => 8,
        }
    }
}

/// Converts little-endian elements: exactly where the type is wider, to the nearest (ties to even) where it is not.
pub fn cast(block: &[u8], from: Element, to: Element) -> Cow<'_, [u8]> {
    if from == to {
        return Cow::Borrowed(block);
    }
    let values = block
        .chunks_exact(from.width() as usize)
        .map(|bytes| widened(bytes, from));
    Cow::Owned(match to {
        Element::F16 => values
            .flat_map(|value| f16::from_f64(value).to_le_bytes())
            .collect(),
        Element::Bf16 => values
            .flat_map(|value| bf16::from_f64(value).to_le_bytes())
            .collect(),
        Element::F32 => values
            .flat_map(|value| (value as f32).to_le_bytes())
            .collect(),
        Element::F64 => values.flat_map(f64::to_le_bytes).collect(),
    })
}

/// Every value of a smaller type is one of f64.
fn widened(bytes: &[u8], from: Element) -> f64 {
    let mut word = [0; 8];
    word[..bytes.len()].copy_from_slice(bytes);
    match from {
        Element::F16 => f16::from_le_bytes([word[0], word[1]]).to_f64(),
        Element::Bf16 => bf16::from_le_bytes([word[0], word[1]]).to_f64(),
        Element::F32 => f32::from_le_bytes([word[0], word[1], word[2], word[3]]).into(),
        Element::F64 => f64::from_le_bytes(word),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn cast_f32(value: f32, to: Element) -> Vec<u8> {
        cast(&value.to_le_bytes(), Element::F32, to).into_owned()
    }

    #[test]
    fn wider_types_hold_the_same_value() {
        for bits in 0..=u16::MAX {
            let (half, brain) = (f16::from_bits(bits), bf16::from_bits(bits));
            for (from, value) in [
                (Element::F16, half.to_f32()),
                (Element::Bf16, brain.to_f32()),
            ] {
                let wide = cast(&bits.to_le_bytes(), from, Element::F32).into_owned();
                let wide = f32::from_le_bytes(wide.try_into().unwrap());
                assert!(
                    wide.to_bits() == value.to_bits() || (wide.is_nan() && value.is_nan()),
                    "{bits:#06x}"
                );
            }
        }
    }

    #[test]
    fn narrower_types_hold_the_nearest_value() {
        // 1 + 2^-8 lies between 1 and 1 + 2^-7: a tie, and 1 is even. 1 + 3 * 2^-8 is a tie whose even side is above.
        let step = 2.0_f32.powi(-8);
        for (value, nearest) in [
            (1.0, 1.0),
            (1.0 + step, 1.0),
            (1.0 + 1.01 * step, 1.0 + 2.0 * step),
            (1.0 + 3.0 * step, 1.0 + 4.0 * step),
            (-3.0e38, -3.0041e38),
        ] {
            let bytes = cast_f32(value, Element::Bf16);
            let found = bf16::from_le_bytes([bytes[0], bytes[1]]).to_f32();
            assert!(
                (found - nearest).abs() <= nearest.abs() * 1e-3,
                "{value} became {found}"
            );
            assert_eq!(found.to_bits(), bf16::from_f32(value).to_f32().to_bits());
        }
    }
}
