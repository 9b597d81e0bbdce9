//! Tensors as PyTorch stores them: a window, by strides, onto a storage.

use std::borrow::Cow;

use crate::weights::StoredType;

/// The part of a storage that is a tensor.
#[derive(Debug, Clone)]
pub(super) struct Window {
    /// Type of the storage's elements.
    pub(super) stored: StoredType,
    /// Of the first element, in elements.
    pub(super) offset: usize,
    pub(super) shape: Vec<usize>,
    /// In elements, one a dimension.
    pub(super) strides: Vec<usize>,
}

impl Window {
    /// The most dimensions that are read; networks have four.
    pub(super) const MAX_RANK: usize = 16;

    /// Number of elements, if that is a number.
    pub(super) fn elements(&self) -> Option<usize> {
        self.shape.iter().try_fold(1usize, |product, &side| product.checked_mul(side))
    }

    /// Bytes of an element in the storage.
    pub(super) fn width(&self) -> usize {
        self.stored.bitsize() / 8
    }

    /// Whether every element lies within a storage of `len` bytes.
    pub(super) fn fits(&self, len: usize) -> bool {
        if self.shape.contains(&0) {
            return true;
        }
        let last = self
            .shape
            .iter()
            .zip(&self.strides)
            .try_fold(self.offset, |at, (&side, &stride)| at.checked_add((side - 1).checked_mul(stride)?));
        let end = last.and_then(|last| last.checked_add(1)?.checked_mul(self.width()));
        end.is_some_and(|end| end <= len)
    }

    /// The type under which the tensor is handed out: 64-bit floats are narrowed to 32.
    pub(super) fn dtype(&self) -> StoredType {
        if self.stored == StoredType::F64 { StoredType::F32 } else { self.stored }
    }

    /// The elements as [`dtype`](Self::dtype) says, little-endian and row-major. The window [`fits`](Self::fits).
    pub(super) fn bytes<'s>(&self, storage: &'s [u8]) -> Cow<'s, [u8]> {
        let stored = self.gather(storage);
        if self.stored != StoredType::F64 {
            return stored;
        }
        let (doubles, _) = stored.as_chunks::<8>();
        Cow::Owned(doubles.iter().flat_map(|&double| (f64::from_le_bytes(double) as f32).to_le_bytes()).collect())
    }

    fn gather<'s>(&self, storage: &'s [u8]) -> Cow<'s, [u8]> {
        let width = self.width();
        let elements = self.elements().unwrap_or(0);
        if elements == 0 {
            return Cow::Borrowed(&[]);
        }
        if self.is_contiguous() {
            let start = self.offset * width;
            return Cow::Borrowed(storage.get(start..start + elements * width).unwrap_or_default());
        }
        let mut gathered = Vec::with_capacity(elements * width);
        let mut index = vec![0; self.shape.len()];
        let mut at = self.offset;
        for _ in 0..elements {
            gathered.extend_from_slice(storage.get(at * width..(at + 1) * width).unwrap_or_default());
            // Count the index up like an odometer, the last dimension fastest. The stride of a dimension of one element
            // may be anything: it is added and taken away again.
            for ((index, &side), &stride) in index.iter_mut().zip(&self.shape).zip(&self.strides).rev() {
                *index += 1;
                at = at.wrapping_add(stride);
                if *index < side {
                    break;
                }
                at = at.wrapping_sub(side.wrapping_mul(stride));
                *index = 0;
            }
        }
        Cow::Owned(gathered)
    }

    /// Of a window with elements: whether they follow one another.
    fn is_contiguous(&self) -> bool {
        let mut expected = 1;
        self.shape.iter().zip(&self.strides).rev().all(|(&side, &stride)| {
            let contiguous = side == 1 || stride == expected;
            expected *= side;
            contiguous
        })
    }
}
