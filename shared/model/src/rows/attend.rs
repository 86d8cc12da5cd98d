//! Attention of single rows over the keys and values of one sequence.

#![expect(
    clippy::inline_always,
    reason = "loops take the vector width of the function they are inlined into"
)]

use pulp::{Arch, Simd, WithSimd};

use super::packed::{lines, tile};
use crate::kernels::{HeadLayout, exp_sum, maximum};

/// The widest vector: a head's values are padded to a multiple of it.
const LANES: usize = 16;

/// Positions whose keys lie side by side, one widest vector: a new position touches no more memory than it has to, and
/// little is read behind the last one.
const PANEL: usize = 16;

/// Positions whose values the rows read together, so that they find them in the nearest cache.
const RUN: usize = 64;

/// Query rows of one sequence that pass over its keys and values together.
const TOGETHER: usize = 8;

/// Keys and values on the host.
///
/// Keys lie as the product with a query reads them, `[positions / 16, g, e, 16]`; values as the mixture does,
/// `[positions, g, e padded to 16]`.
#[derive(Debug, Clone)]
pub struct HostCache {
    layout: HeadLayout,
    len: usize,
    keys: Vec<f32>,
    values: Vec<f32>,
}

impl HostCache {
    pub(super) fn new(layout: HeadLayout) -> Self {
        Self {
            layout,
            len: 0,
            keys: Vec::new(),
            values: Vec::new(),
        }
    }

    /// Positions read so far.
    pub(super) fn len(&self) -> usize {
        self.len
    }

    /// The first `len` positions, as a cache of their own.
    pub(super) fn fork(&self, len: usize) -> Self {
        let len = len.min(self.len);
        Self {
            layout: self.layout,
            len,
            keys: self.keys[..len.div_ceil(PANEL) * self.panel()].to_vec(),
            values: self.values[..len * self.line()].to_vec(),
        }
    }

    /// Forgets what lies behind the first `len` positions.
    pub(super) fn truncate(&mut self, len: usize) {
        self.len = len.min(self.len);
        self.keys.truncate(self.len.div_ceil(PANEL) * self.panel());
        self.values.truncate(self.len * self.line());
    }

    /// Values of 16 positions' keys.
    fn panel(&self) -> usize {
        self.layout.kv_heads * self.layout.head_dim * PANEL
    }

    fn padded(&self) -> usize {
        self.layout.head_dim.next_multiple_of(LANES)
    }

    /// Values of one position, padding included.
    fn line(&self) -> usize {
        self.layout.kv_heads * self.padded()
    }

    /// Appends the next position, `k` and `v` `[g, e]`.
    pub(super) fn push(&mut self, k: &[f32], v: &[f32]) {
        let (panel, e) = (self.panel(), self.layout.head_dim);
        let column = self.len % PANEL;
        if column == 0 {
            self.keys.resize(self.len / PANEL * panel + panel, 0.0);
        }
        let last = &mut self.keys[self.len / PANEL * panel..];
        for (line, k) in last.chunks_exact_mut(PANEL).zip(k) {
            line[column] = *k;
        }
        for v in v.chunks_exact(e) {
            self.values.extend_from_slice(v);
            self.values
                .resize(self.values.len() + self.padded() - e, 0.0);
        }
        self.len += 1;
    }

    /// The mixtures of values `out [rows, n, e]` that query rows `q`, `stride` apart, take of the positions up to their
    /// own: softmax(q·k / √e) per head. The rows are the last that were read. `scores` is room to work in.
    pub(super) fn attend(&self, q: &[f32], stride: usize, out: &mut [f32], scores: &mut Vec<f32>) {
        let query = self.layout.heads * self.layout.head_dim;
        let mut rows = out.len() / query;
        let groups = q.chunks(TOGETHER * stride);
        for (q, out) in groups.zip(out.chunks_mut(TOGETHER * query)) {
            let group = out.len() / query;
            let first_len = self.len + 1 - rows;
            let room = (first_len + group - 1).next_multiple_of(PANEL);
            scores.resize(group * self.layout.heads * room, 0.0);
            Arch::new().dispatch(Attend {
                cache: self,
                q,
                stride,
                first_len,
                out,
                room,
                scores,
            });
            rows -= group;
        }
    }
}

/// Some consecutive rows; the first sees `first_len` positions.
struct Attend<'a> {
    cache: &'a HostCache,
    q: &'a [f32],
    stride: usize,
    first_len: usize,
    out: &'a mut [f32],
    room: usize,
    /// `[rows, n, room]`
    scores: &'a mut [f32],
}

impl WithSimd for Attend<'_> {
    type Output = ();

    #[inline(always)]
    fn with_simd<S: Simd>(mut self, simd: S) {
        match S::F32_LANES {
            16 => self.score::<S, 1, 1>(simd),
            8 => self.score::<S, 2, 2>(simd),
            4 => self.score::<S, 2, 4>(simd),
            _ => self.score::<S, 2, PANEL>(simd),
        }
        let shares = self.weigh();
        self.mix(simd, &shares);
    }
}

impl Attend<'_> {
    /// Panel by panel, in the order in which they lie, so that the rows find each in the nearest cache.
    #[inline(always)]
    fn score<S: Simd, const VECTORS: usize, const LINE: usize>(&mut self, simd: S) {
        let HeadLayout {
            heads,
            kv_heads,
            head_dim: e,
        } = self.cache.layout;
        let scale = 1.0 / (e as f32).sqrt();
        let step = VECTORS * S::F32_LANES;
        let lines = lines::<S, LINE>(&self.cache.keys);
        for panel in 0..self.room / PANEL {
            for head in 0..heads {
                let kv = head / (heads / kv_heads);
                let lines = &lines[(panel * kv_heads + kv) * e..][..e];
                for (row, q) in self.q.chunks(self.stride).enumerate() {
                    let q = q[head * e..][..e].as_chunks::<1>().0;
                    let scores =
                        &mut self.scores[(row * heads + head) * self.room + panel * PANEL..];
                    for first in (0..PANEL).step_by(step) {
                        let mut sums = [[simd.splat_f32s(0.0); VECTORS]];
                        tile(simd, lines, first / step, q, &mut sums);
                        let sums: &[f32] = pulp::bytemuck::cast_slice(&sums[0]);
                        for (score, sum) in scores[first..].iter_mut().zip(sums) {
                            *score = sum * scale;
                        }
                    }
                }
            }
        }
    }

    /// Turns scores into e^(score - highest); returns the inverse of the sum of each row and head.
    #[inline(always)]
    fn weigh(&mut self) -> Vec<f32> {
        let heads = self.cache.layout.heads;
        let mut shares = vec![0.0; self.scores.len() / self.room];
        // A loop, since an iterator's closure would be compiled for the narrowest vectors.
        let all = self.scores.chunks_exact_mut(self.room);
        for (index, (share, scores)) in shares.iter_mut().zip(all).enumerate() {
            let seen = &mut scores[..self.first_len + index / heads];
            let top = maximum(seen);
            *share = 1.0 / exp_sum(seen, top);
        }
        shares
    }

    /// Sums the values of each head in the order of positions, four vectors at a time where a line has so many.
    #[inline(always)]
    fn mix<S: Simd>(&mut self, simd: S, shares: &[f32]) {
        let layout = self.cache.layout;
        for member in 0..layout.heads / layout.kv_heads {
            let (line, mut first) = (self.cache.line(), 0);
            while first < line {
                if first + 4 * S::F32_LANES <= line {
                    self.mix_columns::<S, 4>(simd, member, first, shares);
                    first += 4 * S::F32_LANES;
                } else {
                    self.mix_columns::<S, 1>(simd, member, first, shares);
                    first += S::F32_LANES;
                }
            }
        }
    }

    /// Some columns of the lines, for the query heads that are `member` in the group of their key/value head. Positions
    /// come in runs of 64, which the rows find in the nearest cache.
    #[inline(always)]
    fn mix_columns<S: Simd, const VECTORS: usize>(
        &mut self,
        simd: S,
        member: usize,
        first: usize,
        shares: &[f32],
    ) {
        let HeadLayout {
            heads,
            kv_heads,
            head_dim: e,
        } = self.cache.layout;
        let padded = self.cache.padded();
        let column = |v: usize| first + v * S::F32_LANES;
        let head = |v: usize| column(v) / padded * (heads / kv_heads) + member;
        let rows = self.out.len() / (heads * e);
        let mut sums = [[simd.splat_f32s(0.0); VECTORS]; TOGETHER];
        // What only later rows see lies behind.
        let runs = (self.first_len + rows - 1).div_ceil(RUN);
        let values = self.cache.values.chunks(RUN * self.cache.line());
        for (run, values) in values.take(runs).enumerate() {
            for (row, kept) in sums.iter_mut().enumerate().take(rows) {
                let seen = (self.first_len + row).saturating_sub(run * RUN).min(RUN);
                let scores: [&[f32]; VECTORS] = std::array::from_fn(|v| {
                    &self.scores[(row * heads + head(v)) * self.room + run * RUN..][..seen]
                });
                // Sums of their own, that nothing points to: they stay in registers.
                let mut sums: [S::f32s; VECTORS] = *kept;
                let lines = values.chunks_exact(self.cache.line());
                for (t, line) in lines.take(seen).enumerate() {
                    let (line, _) = S::as_simd_f32s(&line[first..first + VECTORS * S::F32_LANES]);
                    for v in 0..VECTORS {
                        sums[v] =
                            simd.mul_add_f32s(simd.splat_f32s(scores[v][t]), line[v], sums[v]);
                    }
                }
                *kept = sums;
            }
        }
        for (row, sums) in sums.iter().enumerate().take(rows) {
            for (v, sums) in sums.iter().enumerate() {
                let sums: &[f32] = pulp::bytemuck::cast_slice(std::slice::from_ref(sums));
                let from = column(v) % padded;
                let own = from.min(e)..e.min(from + S::F32_LANES);
                let out = &mut self.out[(row * heads + head(v)) * e..][own];
                for (out, sum) in out.iter_mut().zip(sums) {
                    *out = sum * shares[row * heads + head(v)];
                }
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const LAYOUT: HeadLayout = HeadLayout {
        heads: 4,
        kv_heads: 2,
        head_dim: 24,
    };

    /// Queries, keys and values of a position behind each other.
    fn position(index: usize) -> Vec<f32> {
        let width = (LAYOUT.heads + 2 * LAYOUT.kv_heads) * LAYOUT.head_dim;
        (0..width)
            .map(|i| ((index * width + i) as f32 * 0.37).sin())
            .collect()
    }

    #[test]
    fn rows_that_are_read_together_see_what_each_sees_alone() {
        let (query, key) = (
            LAYOUT.heads * LAYOUT.head_dim,
            LAYOUT.kv_heads * LAYOUT.head_dim,
        );
        let positions: Vec<Vec<f32>> = (0..200).map(position).collect();
        let mut scores = Vec::new();
        let mut cache = HostCache::new(LAYOUT);
        let mut alone = Vec::new();
        for own in &positions {
            cache.push(&own[query..query + key], &own[query + key..]);
            let mut out = vec![0.0; query];
            cache.attend(own, own.len(), &mut out, &mut scores);
            alone.extend(out);
        }
        for rows in [1, 9, 64, 100, 200] {
            let first = positions.len() - rows;
            let mut together = vec![0.0; rows * query];
            let stride = positions[0].len();
            let q = positions[first..].concat();
            cache.attend(&q, stride, &mut together, &mut scores);
            assert_eq!(together, alone[first * query..], "{rows} rows");
        }
    }
}
