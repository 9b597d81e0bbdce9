//! The one list of modules that a YAML may name.

use super::conv::Conv;
use super::cross_conv::CrossConv;
use super::detect::Detect;
use super::dynamic_conv::DynamicConv;
use super::ghost_bottleneck::GhostBottleneck;
use super::ghost_conv::GhostConv;
use super::ghost_module::GhostModule;
use super::spp::Spp;
use super::{
    Args, Built, bottleneck, bottleneck_csp, c3, c3_dynamic_conv, c3_ghost, c3_ghost_dynamic_conv, c3spp, c3tr, c3x,
    contract, dw_conv_transpose, dy_conv, focus, mix_conv, primitive, segment, sppf,
};

/// How a row's arguments become a module's.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Kind {
    /// Channels in come first, channels out are scaled by the width.
    Scaled,
    /// As scaled, and the number of repeats is the third argument.
    Repeats,
    /// Only the channels in.
    Norm,
    /// As they stand.
    Plain,
    /// As they stand, and several layers are read.
    Join,
    /// A head: the channels of the levels come last.
    Head,
    /// A head whose fourth argument is a scaled number of channels.
    SegmentHead,
}

/// A module that a YAML may name.
pub(crate) struct Entry {
    /// As the YAML names it.
    pub(crate) name: &'static str,
    /// The Python class, as YOLOv5 prints it; its last part is the module's bare name.
    pub(crate) class: &'static str,
    pub(crate) kind: Kind,
    /// Reads the arguments.
    pub(crate) read: fn(&mut Args<'_>) -> Built,
}

impl Entry {
    /// Name without its Python path: `Upsample`.
    pub(crate) fn bare_name(&self) -> &'static str {
        self.class.rsplit('.').next().unwrap_or(self.class)
    }
}

const fn entry(name: &'static str, class: &'static str, kind: Kind, read: fn(&mut Args<'_>) -> Built) -> Entry {
    Entry { name, class, kind, read }
}

/// Every module, by name.
#[rustfmt::skip]
pub(crate) const MODULES: &[Entry] = &[
    entry("Conv", "models.common.Conv", Kind::Scaled, Conv::read),
    entry("DWConv", "models.common.DWConv", Kind::Scaled, Conv::read_depthwise),
    entry("DWConvTranspose2d", "models.common.DWConvTranspose2d", Kind::Scaled, dw_conv_transpose::read),
    entry("GhostConv", "models.common.GhostConv", Kind::Scaled, GhostConv::read),
    entry("GhostBottleneck", "models.common.GhostBottleneck", Kind::Scaled, GhostBottleneck::read),
    entry("Bottleneck", "models.common.Bottleneck", Kind::Scaled, bottleneck::Bottleneck::read),
    entry("BottleneckCSP", "models.common.BottleneckCSP", Kind::Repeats, bottleneck_csp::read),
    entry("SPP", "models.common.SPP", Kind::Scaled, Spp::read),
    entry("SPPF", "models.common.SPPF", Kind::Scaled, sppf::read),
    entry("MixConv2d", "models.experimental.MixConv2d", Kind::Scaled, mix_conv::read),
    entry("Focus", "models.common.Focus", Kind::Scaled, focus::read),
    entry("CrossConv", "models.common.CrossConv", Kind::Scaled, CrossConv::read),
    entry("C3", "models.common.C3", Kind::Repeats, c3::read),
    entry("C3TR", "models.common.C3TR", Kind::Repeats, c3tr::read),
    entry("C3SPP", "models.common.C3SPP", Kind::Scaled, c3spp::read),
    entry("C3Ghost", "models.common.C3Ghost", Kind::Repeats, c3_ghost::read),
    entry("C3x", "models.common.C3x", Kind::Repeats, c3x::read),
    entry("DynamicConv", "models.common.DynamicConv", Kind::Scaled, DynamicConv::read),
    entry("GhostModule", "models.common.GhostModule", Kind::Scaled, GhostModule::read),
    entry("C3_GhostDynamicConv", "models.common.C3_GhostDynamicConv", Kind::Repeats, c3_ghost_dynamic_conv::read),
    entry("C3_DynamicConv", "models.common.C3_DynamicConv", Kind::Repeats, c3_dynamic_conv::read),
    entry("DyConv2d", "models.common.DyConv2d", Kind::Scaled, dy_conv::read),
    entry("nn.Conv2d", "torch.nn.modules.conv.Conv2d", Kind::Plain, primitive::read_conv2d),
    entry("nn.ConvTranspose2d", "torch.nn.modules.conv.ConvTranspose2d", Kind::Scaled, primitive::read_conv_transpose2d),
    entry("nn.BatchNorm2d", "torch.nn.modules.batchnorm.BatchNorm2d", Kind::Norm, primitive::read_batch_norm2d),
    entry("nn.MaxPool2d", "torch.nn.modules.pooling.MaxPool2d", Kind::Plain, primitive::read_max_pool2d),
    entry("nn.ZeroPad2d", "torch.nn.modules.padding.ZeroPad2d", Kind::Plain, primitive::read_zero_pad2d),
    entry("nn.Upsample", "torch.nn.modules.upsampling.Upsample", Kind::Plain, primitive::read_upsample),
    entry("Concat", "models.common.Concat", Kind::Join, primitive::read_concat),
    entry("Contract", "models.common.Contract", Kind::Plain, contract::read_contract),
    entry("Expand", "models.common.Expand", Kind::Plain, contract::read_expand),
    entry("Detect", "models.yolo.Detect", Kind::Head, Detect::read),
    entry("Segment", "models.yolo.Segment", Kind::SegmentHead, segment::read),
];

/// The module that a YAML calls `name`; `torch.nn.X` and `nn.X` are the same.
pub(crate) fn find(name: &str) -> Option<&'static Entry> {
    let name = name.strip_prefix("torch.").unwrap_or(name);
    MODULES.iter().find(|entry| entry.name == name)
}

/// The names that a YAML may use.
pub fn names() -> impl Iterator<Item = &'static str> {
    MODULES.iter().map(|entry| entry.name)
}
