//! Positional arguments of a module, read one after the other under the names of the Python signature.

use crate::config::{Activation, Anchors, Arg, DynamicConfig, RoutingKind, Temperature};
use crate::graph::RouteActivation;

/// Bounds that no network reaches; they keep arithmetic on sizes from overflowing.
const MAX_CHANNELS: usize = 1 << 20;
const MAX_SIZE: usize = 1 << 10;
const MAX_EXPERTS: usize = 256;

/// What a module may need to know of the whole network.
pub(crate) struct Context<'a> {
    /// Classes.
    pub(crate) classes: usize,
    /// Anchors.
    pub(crate) anchors: &'a Anchors,
    /// Routing of dynamic convolutions.
    pub(crate) dynamic: DynamicConfig,
}

impl Context<'_> {
    /// Routing activation of the network's dynamic convolutions.
    pub(crate) fn route_activation(&self) -> RouteActivation {
        match self.dynamic.routing {
            RoutingKind::Sigmoid => RouteActivation::Sigmoid,
            RoutingKind::Softmax => RouteActivation::Softmax {
                temperature: self.dynamic.temperature.map_or(1.0, Temperature::at_inference),
            },
        }
    }

    /// Experts of a dynamic convolution that names no number of its own.
    pub(crate) fn num_experts(&self) -> usize {
        self.dynamic.num_experts.unwrap_or(4)
    }
}

/// How a module's activation argument was given.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(crate) enum ActArg {
    /// `True`: the class's default.
    Default,
    /// `False`: none, which PyTorch holds as an `Identity`.
    Identity,
    /// One of its own: `nn.ReLU()`.
    Own(Activation),
}

/// A cursor over positional arguments.
pub(crate) struct Args<'a> {
    values: &'a [Arg],
    next: usize,
    pub(crate) context: &'a Context<'a>,
}

impl<'a> Args<'a> {
    pub(crate) fn new(values: &'a [Arg], context: &'a Context<'a>) -> Self {
        Self { values, next: 0, context }
    }

    fn take(&mut self) -> Option<&'a Arg> {
        let value = self.values.get(self.next);
        self.next += 1;
        value
    }

    fn number(name: &str, value: &Arg, range: std::ops::RangeInclusive<usize>) -> Result<usize, String> {
        let number = match value {
            Arg::Int(int) => usize::try_from(*int).ok(),
            Arg::Bool(flag) => Some(usize::from(*flag)),
            _ => None,
        };
        number.filter(|number| range.contains(number)).ok_or_else(|| {
            format!("`{name}` must be a whole number from {} to {}, it is {value}", range.start(), range.end())
        })
    }

    /// A required number of channels.
    pub(crate) fn channels(&mut self, name: &str) -> Result<usize, String> {
        let value = self.take().ok_or_else(|| format!("the argument `{name}` is missing"))?;
        Self::number(name, value, 1..=MAX_CHANNELS)
    }

    /// A size from 1 up: kernel, stride, groups, dilation, experts, repeats.
    pub(crate) fn size(&mut self, name: &str, default: usize) -> Result<usize, String> {
        match self.take() {
            None => Ok(default),
            Some(value) => Self::number(name, value, 1..=MAX_SIZE),
        }
    }

    /// A number of groups, which may be as large as a number of channels.
    pub(crate) fn groups(&mut self) -> Result<usize, String> {
        match self.take() {
            None => Ok(1),
            Some(value) => Self::number("g", value, 1..=MAX_CHANNELS),
        }
    }

    /// A number of experts.
    pub(crate) fn experts(&mut self, default: usize) -> Result<usize, String> {
        match self.take() {
            None => Ok(default),
            Some(value) => Self::number("num_experts", value, 1..=MAX_EXPERTS),
        }
    }

    /// A size that may be 0: padding, repeats.
    pub(crate) fn count(&mut self, name: &str, default: usize) -> Result<usize, String> {
        match self.take() {
            None => Ok(default),
            Some(value) => Self::number(name, value, 0..=MAX_SIZE),
        }
    }

    /// A required size from 1 up.
    pub(crate) fn required_size(&mut self, name: &str) -> Result<usize, String> {
        if self.next >= self.values.len() {
            return Err(format!("the argument `{name}` is missing"));
        }
        self.size(name, 1)
    }

    /// One size for both axes, or two: vertical, horizontal.
    pub(crate) fn pair(&mut self, name: &str, default: usize) -> Result<(usize, usize), String> {
        match self.take() {
            None => Ok((default, default)),
            Some(Arg::List(list)) => match list.as_slice() {
                [v, h] => Ok((Self::number(name, v, 1..=MAX_SIZE)?, Self::number(name, h, 1..=MAX_SIZE)?)),
                _ => Err(format!("`{name}` must be one number or two, it is {}", Arg::List(list.clone()))),
            },
            Some(value) => Self::number(name, value, 1..=MAX_SIZE).map(|size| (size, size)),
        }
    }

    /// A padding: `None` leaves it to the kernel.
    pub(crate) fn padding(&mut self) -> Result<Option<(usize, usize)>, String> {
        match self.take() {
            None | Some(Arg::None) => Ok(None),
            Some(Arg::List(list)) => match list.as_slice() {
                [v, h] => Ok(Some((Self::number("p", v, 0..=MAX_SIZE)?, Self::number("p", h, 0..=MAX_SIZE)?))),
                _ => Err(format!("`p` must be one number or two, it is {}", Arg::List(list.clone()))),
            },
            Some(value) => Self::number("p", value, 0..=MAX_SIZE).map(|size| Some((size, size))),
        }
    }

    /// A list of sizes.
    pub(crate) fn sizes(&mut self, name: &str, default: &[usize]) -> Result<Vec<usize>, String> {
        match self.take() {
            None => Ok(default.to_vec()),
            Some(Arg::List(list)) if (1..=64).contains(&list.len()) => {
                list.iter().map(|value| Self::number(name, value, 1..=MAX_SIZE)).collect()
            }
            Some(value) => Err(format!("`{name}` must be a list of sizes such as [5, 9, 13], it is {value}")),
        }
    }

    /// True or False.
    pub(crate) fn flag(&mut self, name: &str, default: bool) -> Result<bool, String> {
        match self.take() {
            None => Ok(default),
            Some(Arg::Bool(flag)) => Ok(*flag),
            Some(Arg::Int(int @ 0..=1)) => Ok(*int == 1),
            Some(value) => Err(format!("`{name}` must be True or False, it is {value}")),
        }
    }

    /// A positive factor: expansion, ratio, temperature.
    pub(crate) fn factor(&mut self, name: &str, default: f64) -> Result<f64, String> {
        let value = match self.take() {
            None => return Ok(default),
            Some(value) => value,
        };
        let number = match value {
            Arg::Int(int) => *int as f64,
            Arg::Float(float) => *float,
            _ => f64::NAN,
        };
        if number > 0.0 && number <= 1e4 {
            Ok(number)
        } else {
            Err(format!("`{name}` must be a number over 0, it is {value}"))
        }
    }

    /// True, False, or an activation of its own.
    pub(crate) fn activation(&mut self) -> Result<ActArg, String> {
        match self.take() {
            None => Ok(ActArg::Default),
            Some(Arg::Bool(true) | Arg::Int(1)) => Ok(ActArg::Default),
            Some(Arg::Bool(false) | Arg::None | Arg::Int(0)) => Ok(ActArg::Identity),
            Some(Arg::Str(text)) => Activation::parse(text).map(ActArg::Own),
            Some(value) => Err(format!("`act` must be True, False or an activation such as nn.ReLU(), it is {value}")),
        }
    }

    /// Any value, as it stands.
    pub(crate) fn any(&mut self) -> Option<&'a Arg> {
        self.take()
    }

    /// Refuses arguments that were not read.
    pub(crate) fn finish(self) -> Result<(), String> {
        if self.values.len() > self.next {
            let extra: Vec<String> = self.values[self.next..].iter().map(Arg::to_string).collect();
            return Err(format!("takes {} arguments, also got {}", self.next, extra.join(", ")));
        }
        Ok(())
    }
}
