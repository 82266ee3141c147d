//! Which partitions are whose: every worker computes the same from the same list of live workers. A hint only; what is safe is
//! decided by the leases.

use std::cmp::Reverse;

/// The partitions of one of the workers: at most one more than any other has, and few move when a worker comes or goes. Each
/// partition goes to the worker that ranks highest for it and has room.
pub(crate) fn share_of(worker: &str, members: &[String], partitions: u32) -> Vec<u32> {
    if members.is_empty() {
        return Vec::new();
    }
    let all = partitions as usize;
    let (few, mut more) = (all / members.len(), all % members.len());
    let mut counts = vec![0; members.len()];
    let mut own = Vec::new();
    for number in 0..partitions {
        let mut ranked: Vec<usize> = (0..members.len()).collect();
        ranked.sort_by_key(|at| Reverse(crc32fast::hash(format!("{}/{number}", members[*at]).as_bytes())));
        let has_room = |at: &usize| counts[*at] < few || (counts[*at] == few && more > 0);
        let Some(at) = ranked.into_iter().find(has_room) else { continue };
        if counts[at] == few {
            more -= 1;
        }
        counts[at] += 1;
        if members[at] == worker {
            own.push(number);
        }
    }
    own
}

#[cfg(test)]
mod tests {
    use super::*;

    fn shares(members: &[&str], partitions: u32) -> Vec<Vec<u32>> {
        let names: Vec<String> = members.iter().map(|name| (*name).to_owned()).collect();
        names.iter().map(|own| share_of(own, &names, partitions)).collect()
    }

    #[test]
    fn they_are_what_every_language_computes() {
        assert_eq!(shares(&["w1"], 3), [[0, 1, 2]]);
        assert_eq!(shares(&["w1", "w2", "w3"], 8), [vec![0, 3, 5], vec![1, 4, 6], vec![2, 7]]);
        assert_eq!(shares(&["61ffdef6148125da", "host-7.1"], 5), [vec![0, 1, 4], vec![2, 3]]);
        assert_eq!(shares(&["a", "b", "c"], 2).concat().len(), 2);
        assert_eq!(share_of("gone", &["w1".to_owned()], 4), Vec::<u32>::new());
    }
}
