//! Which known name somebody meant who wrote another.

/// Of those that are at most so far away, the nearest.
pub(super) fn nearest<N: AsRef<str>, T>(
    wanted: &str,
    most: usize,
    names: impl Iterator<Item = (N, T)>,
) -> Option<T> {
    names
        .map(|(name, answer)| (distance(wanted, name.as_ref()), answer))
        .filter(|(distance, _)| *distance <= most)
        .min_by_key(|(distance, _)| *distance)
        .map(|(_, answer)| answer)
}

/// How many characters must be put in, taken out or changed (Levenshtein).
fn distance(left: &str, right: &str) -> usize {
    let right: Vec<char> = right.chars().collect();
    let mut row: Vec<usize> = (0..=right.len()).collect();
    for (i, a) in left.chars().enumerate() {
        let mut diagonal = row[0];
        row[0] = i + 1;
        for (j, b) in right.iter().enumerate() {
            let change = diagonal + usize::from(a != *b);
            diagonal = row[j + 1];
            row[j + 1] = change.min(diagonal + 1).min(row[j] + 1);
        }
    }
    row[right.len()]
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn distances() {
        for (left, right, expected) in [
            ("", "", 0),
            ("hosts", "hosts", 0),
            ("host", "hosts", 1),
            ("hsots", "hosts", 2),
            ("", "ca", 2),
            ("kitten", "sitting", 3),
            ("größe", "grösse", 2),
        ] {
            assert_eq!(distance(left, right), expected, "{left} {right}");
            assert_eq!(distance(right, left), expected, "{right} {left}");
        }
    }
}
