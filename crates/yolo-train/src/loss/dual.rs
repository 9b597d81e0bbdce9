//! Numbers that carry their derivatives (forward mode), so that a formula of boxes is written once and differentiated exactly.

use std::ops::{Add, Div, Mul, Sub};

/// A value and its derivatives for a box's centre (x, y), width and height.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(super) struct Dual {
    pub(super) value: f64,
    pub(super) slope: [f64; 4],
}

impl Dual {
    /// A value that depends on nothing; also a term that is held fixed while the rest is differentiated.
    pub(super) fn constant(value: f64) -> Self {
        Self { value, slope: [0.0; 4] }
    }

    /// The variable with this place among the four.
    pub(super) fn variable(value: f64, place: usize) -> Self {
        Self { value, slope: std::array::from_fn(|i| if i == place { 1.0 } else { 0.0 }) }
    }

    /// A function of one argument, by its value and its derivative here.
    fn apply(self, value: f64, derivative: f64) -> Self {
        Self { value, slope: self.slope.map(|slope| slope * derivative) }
    }

    pub(super) fn exp(self) -> Self {
        let value = self.value.exp();
        self.apply(value, value)
    }

    pub(super) fn atan(self) -> Self {
        self.apply(self.value.atan(), 1.0 / (1.0 + self.value * self.value))
    }

    pub(super) fn powi(self, exponent: i32) -> Self {
        self.apply(self.value.powi(exponent), f64::from(exponent) * self.value.powi(exponent - 1))
    }

    pub(super) fn abs(self) -> Self {
        self.apply(self.value.abs(), if self.value < 0.0 { -1.0 } else { 1.0 })
    }

    pub(super) fn min(self, other: Self) -> Self {
        if other.value < self.value { other } else { self }
    }

    pub(super) fn max(self, other: Self) -> Self {
        if other.value > self.value { other } else { self }
    }

    /// The value, at least zero.
    pub(super) fn positive(self) -> Self {
        if self.value > 0.0 { self } else { Self::constant(0.0) }
    }
}

impl Add for Dual {
    type Output = Self;
    fn add(self, other: Self) -> Self {
        Self { value: self.value + other.value, slope: std::array::from_fn(|i| self.slope[i] + other.slope[i]) }
    }
}

impl Sub for Dual {
    type Output = Self;
    fn sub(self, other: Self) -> Self {
        Self { value: self.value - other.value, slope: std::array::from_fn(|i| self.slope[i] - other.slope[i]) }
    }
}

impl Mul for Dual {
    type Output = Self;
    fn mul(self, other: Self) -> Self {
        self.apply(self.value * other.value, other.value) + other.apply(0.0, self.value)
    }
}

impl Div for Dual {
    type Output = Self;
    fn div(self, other: Self) -> Self {
        self * other.apply(other.value.recip(), -other.value.powi(-2))
    }
}

impl Add<f64> for Dual {
    type Output = Self;
    fn add(self, other: f64) -> Self {
        Self { value: self.value + other, ..self }
    }
}

impl Mul<f64> for Dual {
    type Output = Self;
    fn mul(self, other: f64) -> Self {
        self.apply(self.value * other, other)
    }
}
