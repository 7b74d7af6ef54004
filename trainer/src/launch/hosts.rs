//! Slurm's lists of hosts: `gpu[001-004,7],login1` stands for gpu001, gpu002, gpu003, gpu004, gpu7, login1.

/// The first host of such a list; `None` where it is not one.
#[must_use]
pub fn first_host(list: &str) -> Option<String> {
    // The first entry ends at the first comma outside brackets.
    let mut depth = 0_usize;
    let mut end = list.len();
    for (index, character) in list.char_indices() {
        match character {
            '[' => depth += 1,
            ']' => depth = depth.checked_sub(1)?,
            ',' if depth == 0 => {
                end = index;
                break;
            }
            _ => {}
        }
    }
    if depth != 0 {
        return None;
    }
    let mut host = String::new();
    let mut rest = list[..end].trim();
    // Brackets may come more than once: `rack[1-2]node[01-16]`.
    while let Some((before, after)) = rest.split_once('[') {
        let (choices, after) = after.split_once(']')?;
        let first = choices.split([',', '-']).next().filter(|first| !first.is_empty())?;
        host.push_str(before);
        host.push_str(first);
        rest = after;
    }
    host.push_str(rest);
    let plain = |c: char| c.is_ascii_alphanumeric() || matches!(c, '-' | '_' | '.' | ':');
    (!host.is_empty() && host.chars().all(plain)).then_some(host)
}

#[cfg(test)]
mod tests {
    use super::first_host;

    #[test]
    fn lists_are_expanded() {
        for (list, expected) in [
            ("node1", "node1"),
            ("node1,node2", "node1"),
            ("gpu[001-004,7],login1", "gpu001"),
            ("gpu[7,9-12]", "gpu7"),
            ("rack[3-4]node[01-16]", "rack3node01"),
            ("a[0-1]-ib.cluster", "a0-ib.cluster"),
            ("login,gpu[1-2]", "login"),
        ] {
            assert_eq!(first_host(list).as_deref(), Some(expected), "{list}");
        }
        for list in ["", "gpu[", "gpu[]", "gpu]1[", "a b"] {
            assert_eq!(first_host(list), None, "{list}");
        }
    }
}
