//! The two element types of the kernels.

#![expect(
    clippy::inline_always,
    reason = "loops take the vector width of the function they are inlined into"
)]

use std::ops::Neg;

use candle_core::WithDType;

#[cfg(feature = "cuda")]
use crate::cuda::OnDevice;

/// What a device asks of its element types; nothing where none is built in.
#[cfg(not(feature = "cuda"))]
pub(crate) trait OnDevice {}
#[cfg(not(feature = "cuda"))]
impl<T> OnDevice for T {}

/// f32 for training, f64 for the parity suite and finite differences.
pub(crate) trait Float: WithDType + Neg<Output = Self> + OnDevice {
    /// e^x; f32 uses a polynomial that the compiler vectorises.
    fn exp_fast(self) -> Self;
    /// Square root.
    fn root(self) -> Self;
    /// The nearest f32.
    fn single(self) -> f32;
    /// A f32 in this type.
    fn of_single(x: f32) -> Self;
}

impl Float for f32 {
    #[inline(always)]
    fn exp_fast(self) -> Self {
        exp_f32(self)
    }

    #[inline(always)]
    fn root(self) -> Self {
        self.sqrt()
    }

    #[inline(always)]
    fn single(self) -> f32 {
        self
    }

    #[inline(always)]
    fn of_single(x: f32) -> Self {
        x
    }
}

impl Float for f64 {
    #[inline(always)]
    fn exp_fast(self) -> Self {
        self.exp()
    }

    #[inline(always)]
    fn root(self) -> Self {
        self.sqrt()
    }

    #[inline(always)]
    fn single(self) -> f32 {
        self as f32
    }

    #[inline(always)]
    fn of_single(x: f32) -> Self {
        Self::from(x)
    }
}

/// Cephes' `expf` without branches: relative error below 2e-7; NaN stays NaN. Arguments are held inside
/// [-87, 88], so the result never leaves the normal range.
#[inline(always)]
fn exp_f32(x: f32) -> f32 {
    // 1.5 * 2^23: adding it rounds to an integer that then sits in the low mantissa bits.
    const ROUND: f32 = 12_582_912.0;
    // ln 2 in two parts; the first has so few bits that n times it is exact.
    const LN2_HIGH: f32 = 355.0 / 512.0;
    const LN2_LOW: f32 = -2.121_944_4e-4;
    let x = if x < -87.0 { -87.0 } else { x };
    let x = if x > 88.0 { 88.0 } else { x };
    let shifted = x * std::f32::consts::LOG2_E + ROUND;
    let n = shifted - ROUND;
    let r = x - n * LN2_HIGH - n * LN2_LOW;
    let mut p = 1.987_569_1e-4_f32;
    p = p * r + 1.398_2e-3;
    p = p * r + 8.333_452e-3;
    p = p * r + 4.166_579_6e-2;
    p = p * r + 1.666_666_5e-1;
    p = p * r + 0.5;
    let y = p * r * r + r + 1.0;
    y * f32::from_bits((shifted.to_bits() << 23).wrapping_add(0x3f80_0000))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_polynomial_exp_agrees_with_the_library() {
        for step in -8_700..=8_800 {
            let x = step as f32 * 0.01;
            let expected = f64::from(x).exp();
            let relative = (f64::from(exp_f32(x)) - expected).abs() / expected;
            assert!(relative < 2e-7, "exp({x}) is off by {relative:e}");
        }
    }

    #[test]
    fn the_polynomial_exp_keeps_nan_and_survives_infinities() {
        assert!(exp_f32(f32::NAN).is_nan());
        assert!(exp_f32(f32::NEG_INFINITY) < 1e-37);
        assert!(exp_f32(f32::INFINITY).is_finite());
    }
}
