//! Values that are asked for before they are wanted.

use super::memory::LINE;

/// Values that will be read next from beyond a level-2 cache. Products ask for their cache lines one by one while they multiply:
/// then they are near when they are wanted, and nobody has waited for them.
pub(super) struct Ahead {
    /// The lines that the next product asks for: the first, and from one to the next.
    line: (*const f32, usize),
    /// From a product's first line to the next one's.
    next: usize,
    /// Products until the next expert.
    left: usize,
    /// Experts that are left, products for each, and values of one.
    experts: (usize, usize, usize),
}

impl Ahead {
    /// Nothing is wanted.
    pub(super) const NOTHING: Self = Self { line: (std::ptr::null(), 0), next: 0, left: 0, experts: (0, 0, 0) };

    /// All of the values, `depth` lines a product.
    pub(super) fn values(values: &[f32], depth: usize) -> Self {
        Self::parts(values, (1, 0), values.len(), depth)
    }

    /// `len` values of each of so many parts, which begin so many values apart; `depth` lines a product.
    pub(super) fn parts(values: &[f32], (parts, apart): (usize, usize), len: usize, depth: usize) -> Self {
        let products = len.div_ceil(LINE * depth);
        Self { line: (values.as_ptr(), LINE), next: LINE * depth, left: products, experts: (parts, products, apart) }
    }

    /// `len` values of each row of each expert: as many rows as a product is deep, which begin at `start` and `stride` apart. A product
    /// asks for a line of every row.
    pub(super) fn rows(experts: &[f32], expert: usize, (start, stride): (usize, usize), len: usize) -> Self {
        // One more where rows do not begin with a line.
        let products = len.div_ceil(LINE) + 1;
        let first = experts[start..].as_ptr();
        Self { line: (first, stride), next: LINE, left: products, experts: (experts.len() / expert, products, expert) }
    }

    /// The first line that a product is to ask for, and from one to the next; the line of `near` again and again, which it reads anyway, where no
    /// more are wanted.
    #[inline(always)]
    pub(super) fn lines(&mut self, near: *const f32) -> (*const f32, usize) {
        let (experts, products, expert) = self.experts;
        if experts == 0 {
            return (near, 0);
        }
        let line = self.line;
        self.left -= 1;
        if self.left == 0 {
            let back = (products - 1) * self.next;
            self.line.0 = line.0.wrapping_sub(back).wrapping_add(expert);
            (self.left, self.experts.0) = (products, experts - 1);
        } else {
            self.line.0 = line.0.wrapping_add(self.next);
        }
        line
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Which lines of `values` products of some depth ask for, until they ask for nothing new.
    fn asked(values: &[f32], mut ahead: Ahead, depth: usize) -> Vec<bool> {
        let near = [0.0f32];
        let start = values.as_ptr() as usize;
        let mut lines = vec![false; values.len().div_ceil(LINE)];
        loop {
            let (first, step) = ahead.lines(near.as_ptr());
            if first == near.as_ptr() {
                return lines;
            }
            for k in 0..depth {
                let at = first.wrapping_add(k * step) as usize;
                if let Some(line) = lines.get_mut(at.wrapping_sub(start) / size_of::<f32>() / LINE) {
                    *line = true;
                }
            }
        }
    }

    #[test]
    fn every_line_is_asked_for_and_no_part_between() {
        let values = vec![0.0f32; 64 * LINE];
        assert!(asked(&values, Ahead::NOTHING, 8).iter().all(|line| !line));
        for len in [1, 2 * LINE, 50 * LINE - 3] {
            let lines = asked(&values, Ahead::values(&values[..len], 8), 8);
            let wanted = len.div_ceil(LINE);
            assert!(lines[..wanted].iter().all(|line| *line));
            assert!(lines[wanted.next_multiple_of(8)..].iter().all(|line| !line));
        }
        // Parts of five lines, sixteen lines apart, four lines a product: three more may come with them.
        let lines = asked(&values, Ahead::parts(&values, (4, 16 * LINE), 5 * LINE, 4), 4);
        for (line, asked) in lines.into_iter().enumerate() {
            assert_eq!(asked, line % 16 < 8, "line {line}");
        }
        // Two experts of 32 lines, each of four rows of eight lines, of which three from the second on are wanted.
        let lines = asked(&values, Ahead::rows(&values, 32 * LINE, (LINE, 8 * LINE), 3 * LINE), 4);
        for (line, asked) in lines.into_iter().enumerate() {
            assert_eq!(asked, (1..5).contains(&(line % 8)), "line {line}");
        }
    }
}
