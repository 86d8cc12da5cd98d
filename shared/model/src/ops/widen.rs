//! Frozen weights in the element type of an operation, from whatever smaller type they are kept in.

use candle_core::{DType, Result, Tensor, WithDType};
use half::{bf16, f16};
use rayon::prelude::*;

use super::fresh::{Fresh, Unwritten};
use super::{COPY, tensor_values};
use crate::float::Float;

/// The values of `parts` behind each other. A smaller type's values are all values of the larger one: nothing is rounded.
pub(super) fn widened<T: Float>(parts: &[Tensor]) -> Result<Vec<T>> {
    let mut all = Fresh::<T>::new(parts.iter().map(Tensor::elem_count).sum());
    let mut rest = all.unwritten();
    for part in parts {
        let (to, behind) = rest.split_at(part.elem_count());
        match part.dtype() {
            DType::BF16 => fill(to, part, |x: bf16| T::of_single(x.to_f32()))?,
            DType::F16 => fill(to, part, |x: f16| T::of_single(x.to_f32()))?,
            DType::F32 => fill(to, part, T::of_single)?,
            _ => fill(to, part, |x: T| x)?,
        }
        rest = behind;
    }
    Ok(all.finish())
}

/// Copies a tensor on all threads.
fn fill<N: WithDType, T: Float>(
    to: Unwritten<'_, T>,
    part: &Tensor,
    wide: impl Fn(N) -> T + Sync,
) -> Result<()> {
    let (storage, layout) = part.storage_and_layout();
    let from = tensor_values::<N>(&storage, layout)?;
    to.par_chunks(COPY)
        .zip(from.par_chunks(COPY))
        .for_each(|(to, from)| _ = to.each(from, &wide));
    Ok(())
}

#[cfg(test)]
mod tests {
    use candle_core::Device;

    use super::*;

    /// Every finite number of 16 bits, more often than one task takes.
    #[test]
    fn every_number_is_the_one_that_was_stored() {
        let bits: Vec<u16> = (0..=u16::MAX).chain(0..=u16::MAX).collect();
        let brain: Vec<bf16> = bits.iter().copied().map(bf16::from_bits).collect();
        let brain: Vec<bf16> = brain.into_iter().filter(|x| x.is_finite()).collect();
        let half: Vec<f16> = bits.into_iter().map(f16::from_bits).collect();
        let half: Vec<f16> = half.into_iter().filter(|x| x.is_finite()).collect();
        let single = [1.5f32, f32::MIN_POSITIVE / 2.0, -0.0];
        let parts = [
            Tensor::from_slice(&brain, brain.len(), &Device::Cpu).unwrap(),
            Tensor::from_slice(&single, 3, &Device::Cpu).unwrap(),
            Tensor::from_slice(&half, half.len(), &Device::Cpu).unwrap(),
        ];
        let expected: Vec<f64> = (brain.iter().map(|x| x.to_f64()))
            .chain(single.map(f64::from))
            .chain(half.iter().map(|x| x.to_f64()))
            .collect();
        let bits =
            |numbers: Vec<f64>| -> Vec<u64> { numbers.into_iter().map(f64::to_bits).collect() };
        let found = widened::<f32>(&parts).unwrap();
        let found: Vec<f64> = found.into_iter().map(f64::from).collect();
        assert!(bits(found) == bits(expected.clone()));
        assert!(bits(widened::<f64>(&parts).unwrap()) == bits(expected));
    }

    #[test]
    fn a_larger_type_is_refused() {
        let part = Tensor::zeros(3, DType::F64, &Device::Cpu).unwrap();
        assert!(widened::<f32>(&[part]).is_err());
    }
}
