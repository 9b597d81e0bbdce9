//! The table of layers that YOLOv5 prints, and its last line.

use std::fmt;

use serde_json::{Value, json};

use super::{Cost, Graph};
use crate::Result;
use crate::config::{Arg, From};

/// A network's layers, parameters and operations. Prints as YOLOv5's table.
#[derive(Debug, Clone)]
pub struct Summary {
    name: String,
    rows: Vec<Row>,
    params: usize,
    modules: usize,
    strides: Vec<f64>,
    cost: Cost,
    size: usize,
}

#[derive(Debug, Clone)]
struct Row {
    from: From,
    repeats: usize,
    params: usize,
    module: &'static str,
    class: &'static str,
    args: Vec<Arg>,
}

impl Summary {
    pub(super) fn new(graph: &Graph, size: usize) -> Result<Self> {
        let mut cost = Cost::default();
        graph.cost(size, size)?.into_iter().for_each(|layer| cost += layer);
        // YOLOv5 counts on a picture of one stride and scales by the area; attention, whose cost grows with its square,
        // is the one operation for which that makes a difference.
        let stride = graph.stride();
        if let Ok(layers) = graph.cost(stride, stride) {
            let scale = (size as f64 / stride as f64).powi(2);
            cost.printed = layers.iter().map(|layer| layer.printed).sum::<f64>() * scale;
        }
        let rows = graph.layers().iter().map(|layer| Row {
            from: layer.from.clone(),
            repeats: layer.repeats,
            params: layer.params,
            module: layer.module,
            class: layer.class,
            args: layer.args.clone(),
        });
        Ok(Self {
            name: graph.config().stem().replace("yolov5", "YOLOv5"),
            rows: rows.collect(),
            params: graph.num_params(),
            modules: graph.num_modules(),
            strides: graph.strides().to_vec(),
            cost,
            size,
        })
    }

    /// Billions of floating-point operations for one picture: all convolutions, linear layers and attention, the dynamic
    /// convolutions and the mixing of their kernels included.
    pub fn gflops(&self) -> f64 {
        self.cost.total() / 1e9
    }

    /// The figure that YOLOv5 prints, which counts batch normalisation but no dynamic convolution.
    pub fn gflops_printed(&self) -> f64 {
        self.cost.printed / 1e9
    }

    /// The last line of YOLOv5's table.
    pub fn line(&self) -> String {
        format!(
            "{} summary: {} layers, {} parameters, {} gradients, {:.1} GFLOPs",
            self.name,
            self.modules,
            self.params,
            self.params,
            self.gflops()
        )
    }

    /// The summary for machines.
    pub fn to_json(&self) -> Value {
        let from = |from: &From| match from {
            From::One(index) => json!(index),
            From::Many(indices) => json!(indices),
        };
        let layers: Vec<Value> = self
            .rows
            .iter()
            .enumerate()
            .map(|(i, row)| {
                json!({
                    "i": i,
                    "from": from(&row.from),
                    "n": row.repeats,
                    "params": row.params,
                    "module": row.module,
                    "args": row.args.iter().map(Arg::to_json).collect::<Vec<_>>(),
                })
            })
            .collect();
        json!({
            "name": self.name,
            "params": self.params,
            "modules": self.modules,
            "gflops": round(self.gflops()),
            "gflops_printed": round(self.gflops_printed()),
            "flops": {
                "static_conv": self.cost.static_conv,
                "dynamic_conv": self.cost.dynamic_conv,
                "aggregation": self.cost.aggregation,
                "linear": self.cost.linear,
            },
            "imgsz": self.size,
            "strides": self.strides,
            "layers": layers,
        })
    }
}

/// Four digits after the point: a million operations more or less are no news.
fn round(gflops: f64) -> f64 {
    (gflops * 1e4).round() / 1e4
}

impl fmt::Display for Summary {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        writeln!(f, "\n{:>3}{:>18}{:>3}{:>10}  {:<40}{:<30}", "", "from", "n", "params", "module", "arguments")?;
        for (i, row) in self.rows.iter().enumerate() {
            let (from, args) = (row.from.to_string(), Arg::List(row.args.clone()).to_string());
            writeln!(f, "{i:>3}{from:>18}{:>3}{:>10}  {:<40}{args:<30}", row.repeats, row.params, row.class)?;
        }
        write!(f, "{}", self.line())?;
        if (self.gflops() - self.gflops_printed()).abs() >= 0.05 {
            write!(
                f,
                "\n(YOLOv5 itself prints {:.1} GFLOPs: it counts batch normalisation, and leaves dynamic convolutions out)",
                self.gflops_printed()
            )?;
        }
        Ok(())
    }
}
