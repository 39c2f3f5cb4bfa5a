//! Which of the free GPUs go together.

/// Stands for a distance the driver did not tell: as far as can be.
const UNKNOWN: u32 = 50;
/// Up to here every group is tried (16 GPUs in groups of 8 are 12,870); beyond, the search is greedy.
const TRIED_AT_MOST: u64 = 20_000;

/// The `size` candidates with the smallest sum of pairwise distances; the first such group in the given order.
/// `candidates` are positions in `distances` and must be at least `size`.
pub(super) fn closest(candidates: &[usize], size: usize, distances: &[Vec<u32>]) -> Vec<usize> {
    let between =
        |a: usize, b: usize| u64::from(*distances.get(a).and_then(|row| row.get(b)).unwrap_or(&UNKNOWN));
    if combinations(candidates.len(), size) > TRIED_AT_MOST {
        return greedy(candidates, size, between);
    }
    let mut best = (u64::MAX, Vec::new());
    extend(&mut Vec::new(), 0, candidates, size, &between, &mut best);
    best.1
}

/// Tries every way to complete `group` from `rest`, in order, so that the first of equals stays.
fn extend(
    group: &mut Vec<usize>,
    cost: u64,
    rest: &[usize],
    size: usize,
    between: &impl Fn(usize, usize) -> u64,
    best: &mut (u64, Vec<usize>),
) {
    if cost >= best.0 {
        return;
    }
    if group.len() == size {
        *best = (cost, group.clone());
        return;
    }
    for (index, &next) in rest.iter().enumerate() {
        let added: u64 = group.iter().map(|&member| between(member, next)).sum();
        group.push(next);
        extend(group, cost + added, &rest[index + 1..], size, between, best);
        group.pop();
    }
}

/// From every start the nearest GPU again and again; the best of these groups.
fn greedy(candidates: &[usize], size: usize, between: impl Fn(usize, usize) -> u64) -> Vec<usize> {
    let mut best = (u64::MAX, Vec::new());
    for &start in candidates {
        let (mut group, mut cost) = (vec![start], 0);
        while group.len() < size {
            let distance = |next: usize| group.iter().map(|&member| between(member, next)).sum::<u64>();
            let outside = candidates.iter().copied().filter(|next| !group.contains(next));
            let Some(next) = outside.min_by_key(|&next| distance(next)) else { break };
            cost += distance(next);
            group.push(next);
        }
        if cost < best.0 {
            best = (cost, group);
        }
    }
    // In the callers' order: workers see the lowest ordinal first.
    candidates.iter().copied().filter(|index| best.1.contains(index)).collect()
}

fn combinations(n: usize, k: usize) -> u64 {
    (0..k.min(n)).fold(1, |ways: u64, i| ways.saturating_mul((n - i) as u64) / (i as u64 + 1))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn two_boards(n: usize) -> Vec<Vec<u32>> {
        (0..n).map(|a| (0..n).map(|b| if a % 2 == b % 2 { 10 } else { 50 }).collect()).collect()
    }

    #[test]
    fn the_closest_group_wins_and_ties_go_to_the_lowest_ordinals() {
        for (candidates, size, expected) in [
            (vec![0, 1, 2, 3], 2, vec![0, 2]),
            (vec![1, 2, 3], 2, vec![1, 3]),
            (vec![0, 1], 2, vec![0, 1]),
            (vec![2, 3], 1, vec![2]),
            (vec![0, 1, 2, 3, 4, 5], 3, vec![0, 2, 4]),
        ] {
            assert_eq!(closest(&candidates, size, &two_boards(6)), expected, "{candidates:?}");
        }
    }

    #[test]
    fn unknown_distances_mean_plain_order() {
        assert_eq!(closest(&[1, 2, 5], 2, &[]), vec![1, 2]);
    }

    #[test]
    fn large_machines_are_searched_greedily() {
        let candidates: Vec<usize> = (0..40).collect();
        let group = closest(&candidates, 8, &two_boards(40));
        assert_eq!(group.len(), 8);
        assert!(group.iter().all(|index| index % 2 == group[0] % 2), "{group:?}");
    }
}
