//! Rows of wq and wk on their way from Hugging Face's order into Meta's, a head at a time.

/// Within each head the port has the rows 0, 2, 4, … first and 1, 3, 5, … behind them; Meta's order is that of their numbers.
pub(super) struct Pairs {
    /// Bytes of a row, and of a head.
    row: usize,
    size: usize,
    /// The head that is being read.
    head: Vec<u8>,
}

impl Pairs {
    /// For a matrix of so many bytes, rows and heads, of which each holds whole pairs of rows.
    pub(super) fn new(length: u64, rows: u64, heads: u64) -> Self {
        Self {
            row: (length / rows) as usize,
            size: (length / heads) as usize,
            head: Vec::new(),
        }
    }

    /// Takes the next bytes of the matrix and gives each head that is whole.
    pub(super) fn take<E>(
        &mut self,
        mut bytes: &[u8],
        mut give: impl FnMut(&[u8]) -> Result<(), E>,
    ) -> Result<(), E> {
        while !bytes.is_empty() {
            let (now, later) = bytes.split_at(bytes.len().min(self.size - self.head.len()));
            self.head.extend_from_slice(now);
            bytes = later;
            if self.head.len() == self.size {
                let (even, odd) = self.head.split_at(self.size / 2);
                let rows = even.chunks(self.row).zip(odd.chunks(self.row));
                let ordered: Vec<u8> = rows.flat_map(|(even, odd)| [even, odd].concat()).collect();
                give(&ordered)?;
                self.head.clear();
            }
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use std::convert::Infallible;

    use super::*;

    #[test]
    fn heads_come_out_in_pairs_however_the_bytes_come_in() {
        // Two heads of four rows of two bytes; both bytes of a row are its number in Meta's order.
        let port: Vec<u8> = [0, 2, 1, 3, 10, 12, 11, 13]
            .iter()
            .flat_map(|&row| [row, row])
            .collect();
        let meta: Vec<u8> = [0, 1, 2, 3, 10, 11, 12, 13]
            .iter()
            .flat_map(|&row| [row, row])
            .collect();
        for block in [1, 3, 8, 16] {
            let mut pairs = Pairs::new(16, 8, 2);
            let mut out = Vec::new();
            for bytes in port.chunks(block) {
                let give = |head: &[u8]| {
                    out.extend_from_slice(head);
                    Ok::<(), Infallible>(())
                };
                pairs.take(bytes, give).unwrap();
            }
            assert_eq!(out, meta, "in blocks of {block}");
        }
    }
}
