//! Labels along a line that never overlap: those that would are merged, or left out.

/// Width of one character of a label at font size 11, generously.
const CHARACTER_WIDTH: f64 = 6.3;
/// Free space between labels.
const GAP: f64 = 6.0;

/// Width that a label takes.
pub(crate) fn width(text: &str) -> f64 {
    u32::try_from(text.chars().count()).map_or(f64::MAX, |chars| f64::from(chars) * CHARACTER_WIDTH)
}

/// Consecutive rounds under one label.
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct Group {
    /// Number of the first round.
    pub(crate) first: u32,
    /// Number of the last round.
    pub(crate) last: u32,
    /// Left edge of the first.
    pub(crate) from: f64,
    /// Right edge of the last.
    pub(crate) to: f64,
}

impl Group {
    /// What is written: a number, or a range of numbers.
    pub(crate) fn text(&self) -> String {
        match (self.first, self.last) {
            (first, last) if first == last => first.to_string(),
            (first, last) => format!("{first}–{last}"),
        }
    }

    /// Its middle.
    pub(crate) fn middle(&self) -> f64 {
        f64::midpoint(self.from, self.to)
    }

    fn reach(&self) -> (f64, f64) {
        let half = width(&self.text()) / 2.0;
        (self.middle() - half, self.middle() + half)
    }
}

/// Merges neighbours until no two labels overlap. `rounds` are number, left and right edge, in
/// order from left to right.
pub(crate) fn merge(rounds: impl IntoIterator<Item = (u32, f64, f64)>) -> Vec<Group> {
    let mut groups: Vec<Group> = Vec::new();
    for (number, from, to) in rounds {
        groups.push(Group { first: number, last: number, from, to });
        while let [.., before, newest] = groups.as_slice() {
            if before.reach().1 + GAP <= newest.reach().0 {
                break;
            }
            let (last, to) = (newest.last, newest.to.max(before.to));
            groups.pop();
            if let Some(before) = groups.last_mut() {
                before.last = last;
                before.to = to;
            }
        }
    }
    groups
}

/// A row of labels with different claims: the first to come stays.
#[derive(Debug)]
pub(crate) struct Row {
    from: f64,
    to: f64,
    taken: Vec<(f64, f64)>,
}

impl Row {
    /// An empty row between two coordinates.
    pub(crate) fn new(from: f64, to: f64) -> Self {
        Self { from, to, taken: Vec::new() }
    }

    /// The middle of a label that wants to be at `middle`, moved into the row where it sticks out;
    /// `None` where there is no room.
    pub(crate) fn place(&mut self, middle: f64, text: &str) -> Option<f64> {
        let half = width(text) / 2.0;
        let (low, high) = (self.from + half, self.to - half);
        if low > high {
            return None;
        }
        let middle = middle.clamp(low, high);
        let (from, to) = (middle - half, middle + half);
        let free = self.taken.iter().all(|taken| to + GAP <= taken.0 || taken.1 + GAP <= from);
        free.then(|| {
            self.taken.push((from, to));
            middle
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn rounds_of_milliseconds_beside_one_of_seconds_share_a_label() {
        let rounds = [(0, 0.0, 700.0), (1, 700.0, 702.0), (2, 702.0, 703.0), (3, 703.0, 704.0)];
        let texts: Vec<String> = merge(rounds).iter().map(Group::text).collect();
        assert_eq!(texts, ["0", "1–3"]);
    }

    #[test]
    fn labels_with_room_stay_apart() {
        let rounds = [(0, 0.0, 100.0), (1, 100.0, 200.0), (2, 200.0, 300.0)];
        assert_eq!(merge(rounds).len(), 3);
    }

    #[test]
    fn merged_labels_overlap_with_nobody() {
        let rounds = (0..200u32).map(|n| (n, f64::from(n * n) / 50.0, f64::from(n * n) / 50.0));
        let groups = merge(rounds);
        assert!(groups.windows(2).all(|pair| pair[0].reach().1 < pair[1].reach().0));
        assert_eq!((groups[0].first, groups.last().unwrap().last), (0, 199));
    }

    #[test]
    fn the_second_claim_on_the_same_place_is_refused() {
        let mut row = Row::new(0.0, 100.0);
        assert!(row.place(0.0, "paused").is_some());
        assert_eq!(row.place(10.0, "negotiation"), None);
        assert!(row.place(100.0, "end").is_some());
        assert_eq!(Row::new(0.0, 5.0).place(1.0, "too long"), None);
    }
}
