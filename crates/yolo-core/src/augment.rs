//! Test-time augmentation: a batch is seen in three sizes, in one of them mirrored, as YOLOv5's `--augment` does.
//!
//! Large objects are found better in a small picture, and small ones in a large one: the last level's boxes of the largest view
//! and the first level's of the smallest are left out.

use candle_core::{DType, Device, Tensor};

use crate::picture::interpolate;
use crate::{Error, Graph, Result};

/// What a batch is seen as, in the order of the rows that come out.
const VIEWS: [View; 3] =
    [View { scale: 1.0, mirrored: false }, View { scale: 0.83, mirrored: true }, View { scale: 0.67, mirrored: false }];
/// What the network sees where the picture does not reach: the mean of ImageNet's pictures.
const BORDER: f32 = 0.447;

#[derive(Debug, Clone, Copy)]
struct View {
    scale: f64,
    /// Left and right.
    mirrored: bool,
}

/// Checks that a network's rows can be put together: it must be one for detection. Masks' prototypes of three sizes cannot.
///
/// # Errors
/// [`Error::Argument`] of a network for segmentation, or without a head.
pub fn check(graph: &Graph) -> Result<()> {
    let problem = match (graph.strides().is_empty(), graph.num_masks()) {
        (false, 0) => return Ok(()),
        (true, _) => "the network has no boxes: it takes one for detection",
        (false, _) => "masks of several sizes cannot be put together: it takes a network for detection",
    };
    Err(Error::Argument { argument: "augment", problem: problem.into() })
}

/// Height and width of what the network sees of a batch of height and width `size`.
pub fn sizes(graph: &Graph, size: (usize, usize)) -> [(usize, usize); 3] {
    VIEWS.map(|view| view.size(size, graph.stride()))
}

/// Rows of boxes of a batch seen in three sizes, in pixels of the batch; `run` gives those of one of them.
///
/// # Shapes
/// `x` is `[B, 3, H, W]` in main memory, in f32, with sides that the stride divides; `run` is given the same in other sizes
/// ([`sizes`]), and gives `[B, rows, columns]`. So is the result, with the rows of all.
///
/// # Errors
/// As [`check`]; those of `run`, and where the batch has another shape or type.
pub fn augmented<E: From<Error>>(
    graph: &Graph,
    x: &Tensor,
    run: impl FnMut(&Tensor) -> Result<Tensor, E>,
) -> Result<Tensor, E> {
    let views = views(graph, x)?;
    let rows = views.iter().map(run).collect::<Result<Vec<_>, E>>()?;
    Ok(together(graph, x, &rows)?)
}

fn views(graph: &Graph, x: &Tensor) -> Result<Vec<Tensor>> {
    check(graph)?;
    VIEWS.iter().map(|view| view.of(x, graph.stride())).collect()
}

/// The rows of all views as one.
fn together(graph: &Graph, x: &Tensor, rows: &[Tensor]) -> Result<Tensor> {
    let (_, _, _, width) = x.dims4()?;
    let levels = graph.strides().len() as u32;
    // Cells of all levels, where the last one has one and each before it four times as many as the next.
    let cells = (0..levels).fold(0usize, |cells, level| cells.saturating_add(4usize.saturating_pow(level)));
    let mut all = Vec::with_capacity(VIEWS.len());
    for (index, (view, rows)) in VIEWS.iter().zip(rows).enumerate() {
        let rows = rows.to_device(&Device::Cpu)?.to_dtype(DType::F32)?;
        let count = rows.dim(1)?;
        let (first, last) = (count / cells * 4usize.saturating_pow(levels - 1), count / cells);
        let rows = match index {
            0 => rows.narrow(1, 0, count - last)?,
            _ if index + 1 == VIEWS.len() => rows.narrow(1, first, count - first)?,
            _ => rows,
        };
        all.push(view.back(&rows, width)?);
    }
    Ok(Tensor::cat(&all, 1)?)
}

impl View {
    fn size(self, (height, width): (usize, usize), stride: usize) -> (usize, usize) {
        let side = |side: usize| {
            let strides = (side as f64 * self.scale / stride as f64).ceil() as usize;
            strides.max(1) * stride
        };
        if self.scale == 1.0 { (height, width) } else { (side(height), side(width)) }
    }

    /// What the network sees.
    fn of(self, x: &Tensor, stride: usize) -> Result<Tensor> {
        let (_, _, height, width) = x.dims4()?;
        let x = if self.mirrored { x.flip(&[3])? } else { x.clone() };
        if self.scale == 1.0 {
            return Ok(x);
        }
        let inner = [height, width].map(|side| ((side as f64 * self.scale) as usize).max(1));
        let (outer_height, outer_width) = self.size((height, width), stride);
        let x = interpolate(&x, (inner[0], inner[1]))?;
        let x = bordered(x, 2, outer_height - inner[0])?;
        bordered(x, 3, outer_width - inner[1])
    }

    /// Rows of boxes in pixels of the batch, which is so wide.
    fn back(self, rows: &Tensor, width: usize) -> Result<Tensor> {
        let columns = rows.dim(2)?;
        let boxes = (rows.narrow(2, 0, 4)? / self.scale)?;
        let x = boxes.narrow(2, 0, 1)?;
        let x = if self.mirrored { (width as f64 - x)? } else { x };
        Ok(Tensor::cat(&[x, boxes.narrow(2, 1, 3)?, rows.narrow(2, 4, columns - 4)?], 2)?)
    }
}

/// A tensor with so much border at the end of a dimension.
fn bordered(x: Tensor, dim: usize, count: usize) -> Result<Tensor> {
    if count == 0 {
        return Ok(x);
    }
    let mut shape = x.dims().to_vec();
    shape[dim] = count;
    Ok(Tensor::cat(&[&x, &Tensor::full(BORDER, shape, x.device())?], dim)?)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::NetworkConfig;

    #[test]
    fn views_are_those_of_yolov5() {
        let graph = Graph::new(&NetworkConfig::open("yolov5n").unwrap()).unwrap();
        assert_eq!(sizes(&graph, (160, 128)), [(160, 128), (160, 128), (128, 96)]);
        let values = (0..96 * 64).map(|i| (i % 64) as f32 / 64.0 + (i / 64) as f32).collect::<Vec<_>>();
        let x = Tensor::from_vec(values, (1, 1, 96, 64), &Device::Cpu).unwrap();
        let view = |index: usize| VIEWS[index].of(&x, 32).unwrap().squeeze(0).unwrap().squeeze(0).unwrap();
        let at = |view: &Tensor, y: usize, x: usize| view.get(y).unwrap().get(x).unwrap().to_scalar::<f32>().unwrap();
        // The first one is the batch itself.
        assert_eq!(view(0).dims(), [96, 64]);
        assert_eq!(at(&view(0), 95, 1), 95.0 + 1.0 / 64.0);
        // 79 x 53 of 96 x 64 pixels: what lies right comes first.
        let mirrored = view(1);
        assert_eq!(mirrored.dims(), [96, 64]);
        assert!((at(&mirrored, 0, 0) - (63.0 / 64.0 + 0.107_594_94 - 0.103_773_58 / 64.0)).abs() < 1e-5);
        assert!((at(&mirrored, 78, 52) - 95.0).abs() < 0.2 && at(&mirrored, 78, 0) > at(&mirrored, 78, 52));
        for place in [(79, 0), (0, 53), (95, 63)] {
            assert_eq!(at(&mirrored, place.0, place.1), BORDER);
        }
        // 64 x 42 of them.
        let small = view(2);
        assert_eq!(small.dims(), [96, 64]);
        assert!(at(&small, 63, 41) > 94.0 && at(&small, 63, 0) < at(&small, 63, 41));
        assert_eq!([at(&small, 64, 0), at(&small, 0, 42)], [BORDER; 2]);
    }

    #[test]
    fn what_has_no_boxes_or_masks_too_is_refused() {
        let graph = Graph::new(&NetworkConfig::open("yolov5n-seg").unwrap()).unwrap();
        assert!(check(&graph).unwrap_err().to_string().starts_with("augment: masks of several sizes"));
        let yaml =
            "nc: 1\ndepth_multiple: 1\nwidth_multiple: 1\nanchors: 3\nhead: []\nbackbone: [[-1, 1, Conv, [8]]]\n";
        let graph = Graph::new(&NetworkConfig::parse("features.yaml", yaml).unwrap()).unwrap();
        let x = Tensor::zeros((1, 3, 32, 32), DType::F32, &Device::Cpu).unwrap();
        let problem = augmented(&graph, &x, |x| Ok::<_, Error>(x.clone())).unwrap_err().to_string();
        assert_eq!(problem, "augment: the network has no boxes: it takes one for detection");
    }
}
