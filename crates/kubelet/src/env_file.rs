//! Environment files, which a pod's init containers write for its others: `NAME='value'`, where a value may go over
//! many lines and nothing in it means anything but itself.

/// The value of `key`, if the file gives it one; the first that it gives. The error names the line.
// Upstream: pkg/kubelet/util/env/env_util.go ParseEnv
pub fn value(text: &str, key: &str) -> Result<Option<String>, String> {
    let wrong =
        |line: usize, why: &str| Err(format!("invalid environment variable format at line {line}: {why}"));
    let mut lines = text.lines().enumerate().map(|(index, line)| (index + 1, line));
    while let Some((number, line)) = lines.next() {
        let line = line.trim_start_matches([' ', '\t']);
        if line.is_empty() || line.starts_with('#') {
            continue;
        }
        let Some((name, value)) = line.split_once('=') else { return wrong(number, "missing '='") };
        if name.trim_end_matches([' ', '\t']).is_empty() {
            return wrong(number, "empty variable name");
        }
        if name.ends_with([' ', '\t']) {
            return wrong(number, "whitespace before '=' is not allowed");
        }
        if value.starts_with([' ', '\t']) {
            // As a shell reads it: the variable is empty, and the rest is a command.
            if name == key {
                return Ok(Some(String::new()));
            }
            continue;
        }
        let Some(mut rest) = value.strip_prefix('\'') else {
            return wrong(number, "value must be enclosed in single quotes");
        };
        let mut whole = String::new();
        let (last, after) = loop {
            if let Some((end, after)) = rest.split_once('\'') {
                whole.push_str(end);
                break (number + whole.matches('\n').count(), after);
            }
            whole.push_str(rest);
            whole.push('\n');
            let Some((_, next)) = lines.next() else {
                return Err(format!(
                    "invalid environment variable format starting at line {number}: unclosed single quote"
                ));
            };
            rest = next;
        };
        let after = after.trim_start_matches([' ', '\t']);
        if !after.is_empty() && !after.starts_with('#') {
            return wrong(last, "unexpected content after closing quote");
        }
        if name == key {
            return Ok(Some(whole));
        }
    }
    Ok(None)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn files_are_read_strictly() {
        let check = |text: &str, want: Result<Option<&str>, &str>| {
            let got = value(text, "K");
            match (&got, want) {
                (Ok(got), Ok(want)) => assert_eq!(got.as_deref(), want, "{text}"),
                (Err(got), Err(want)) => assert!(got.contains(want), "{text}: {got}"),
                _ => panic!("{text}: {got:?}"),
            }
        };
        check("", Ok(None));
        check("# K='no'\n\n  K='v' # yes\nK='later'", Ok(Some("v")));
        check("A='x'\nK='a $b \\n\nc'\n", Ok(Some("a $b \\n\nc")));
        check("K= 'v'", Ok(Some("")));
        check("A= 'v'\nK='w'", Ok(Some("w")));
        check("K", Err("line 1: missing '='"));
        check("='v'", Err("line 1: empty variable name"));
        check("A='1'\nK ='v'", Err("line 2: whitespace before '=' is not allowed"));
        check("K=v", Err("line 1: value must be enclosed in single quotes"));
        check("A='1\n2' 3\nK='v'", Err("line 2: unexpected content after closing quote"));
        check("A=''\nK='v", Err("starting at line 2: unclosed single quote"));
    }
}
