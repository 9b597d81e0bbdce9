//! What tests of networks compare by.

use candle_core::{DType, Tensor};

/// The largest difference as a part of the largest value; NaN counts as infinite.
pub(crate) fn difference(got: &Tensor, expected: &Tensor) -> f32 {
    assert_eq!(got.dims(), expected.dims());
    let values = |t: &Tensor| t.to_dtype(DType::F32).unwrap().flatten_all().unwrap().to_vec1::<f32>().unwrap();
    let (got, expected) = (values(got), values(expected));
    let largest = expected.iter().fold(0.0f32, |max, v| max.max(v.abs()));
    got.iter().zip(&expected).fold(0.0f32, |max, (g, e)| {
        let difference = (g - e).abs();
        if difference.is_nan() { f32::INFINITY } else { max.max(difference) }
    }) / largest
}
