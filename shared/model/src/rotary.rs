//! Rotary tables: the angle of position t and pair i is `t · theta^(-2i/e)`.

#[cfg(feature = "cuda")]
use candle_core::Tensor;

use crate::{Error, Params, Result};

/// Cosines and sines `[positions, e/2]`, computed in f64. Pairs are interleaved: (2i, 2i+1).
#[derive(Debug, Clone)]
pub struct Rotary {
    half: usize,
    cos: Vec<f64>,
    sin: Vec<f64>,
    #[cfg(feature = "cuda")]
    on_device: DeviceTables,
}

/// Cosines and sines by device and element type, as they were first asked for.
#[cfg(feature = "cuda")]
type DeviceTables = std::sync::Arc<std::sync::Mutex<Vec<(Tensor, Tensor)>>>;

impl Rotary {
    /// Positions for which a model prepares its table: twice the longest sequence of the 7B model. A longer sequence it
    /// refuses.
    pub const POSITIONS: usize = 4096;

    /// The table of a model for all positions it may meet.
    pub fn new(params: &Params) -> Self {
        Self::with_positions(params, Self::POSITIONS)
    }

    /// The table of the positions `0..count`.
    pub(crate) fn with_positions(params: &Params, count: usize) -> Self {
        let half = params.head_dim() / 2;
        let angles = || {
            (0..count).flat_map(move |position| {
                (0..half).map(move |pair| {
                    position as f64 * params.rope_theta.powf(-(pair as f64) / half as f64)
                })
            })
        };
        Self {
            half,
            cos: angles().map(f64::cos).collect(),
            sin: angles().map(f64::sin).collect(),
            #[cfg(feature = "cuda")]
            on_device: DeviceTables::default(),
        }
    }

    /// A table given from outside, `[positions, half]` each; the parity suite shares PyTorch's.
    pub fn from_tables(half: usize, cos: Vec<f64>, sin: Vec<f64>) -> Result<Self> {
        if half == 0 || cos.len() != sin.len() || !cos.len().is_multiple_of(half) {
            return Err(Error::Shape(format!(
                "rotary tables of {} and {} values do not hold rows of {half}",
                cos.len(),
                sin.len()
            )));
        }
        Ok(Self {
            half,
            cos,
            sin,
            #[cfg(feature = "cuda")]
            on_device: DeviceTables::default(),
        })
    }

    /// The whole tables on a device.
    #[cfg(feature = "cuda")]
    pub(crate) fn on_device<T: crate::float::Float>(
        &self,
        device: &candle_core::CudaDevice,
    ) -> candle_core::Result<(Tensor, Tensor)> {
        let place = candle_core::Device::Cuda(device.clone());
        let mut tables = self
            .on_device
            .lock()
            .unwrap_or_else(std::sync::PoisonError::into_inner);
        let known = |(cos, _): &&(Tensor, Tensor)| {
            cos.dtype() == T::DTYPE && cos.device().same_device(&place)
        };
        if let Some(found) = tables.iter().find(known) {
            return Ok(found.clone());
        }
        let table = |numbers: &[f64]| Tensor::new(numbers, &place)?.to_dtype(T::DTYPE);
        let made = (table(&self.cos)?, table(&self.sin)?);
        tables.push(made.clone());
        Ok(made)
    }

    /// Number of prepared positions.
    pub fn positions(&self) -> usize {
        self.cos.len() / self.half
    }

    /// Pairs per head, e/2.
    pub fn half(&self) -> usize {
        self.half
    }

    /// Cosines of the positions `0..count`, row-major.
    pub fn cos(&self, count: usize) -> &[f64] {
        &self.cos[..count * self.half]
    }

    /// Sines of the positions `0..count`, row-major.
    pub fn sin(&self, count: usize) -> &[f64] {
        &self.sin[..count * self.half]
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn angles_follow_the_formula() {
        let rotary = Rotary::new(&Params::micro_mtp(512));
        let half = rotary.half();
        assert_eq!((half, rotary.positions()), (8, Rotary::POSITIONS));
        assert!((rotary.cos(4)[3 * half] - 3f64.cos()).abs() < 1e-15);
        let angle = 3.0 * 10_000f64.powf(-2.0 / 16.0);
        assert!((rotary.sin(4)[3 * half + 1] - angle.sin()).abs() < 1e-15);
    }
}
