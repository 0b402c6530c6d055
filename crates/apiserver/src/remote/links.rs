//! Links in pages that are proxied: a path from the root of the proxied server becomes one below the proxy.
//!
//! Upstream: apimachinery/pkg/util/proxy/transport.go

/// The attributes that hold links, by element.
const LINKS: &[(&str, &[&str])] = &[
    ("a", &["href"]),
    ("applet", &["codebase"]),
    ("area", &["href"]),
    ("audio", &["src"]),
    ("base", &["href"]),
    ("blockquote", &["cite"]),
    ("body", &["background"]),
    ("button", &["formaction"]),
    ("command", &["icon"]),
    ("del", &["cite"]),
    ("embed", &["src"]),
    ("form", &["action"]),
    ("frame", &["longdesc", "src"]),
    ("head", &["profile"]),
    ("html", &["manifest"]),
    ("iframe", &["longdesc", "src"]),
    ("img", &["longdesc", "src", "usemap"]),
    ("input", &["src", "usemap", "formaction"]),
    ("ins", &["cite"]),
    ("link", &["href"]),
    ("object", &["classid", "codebase", "data", "usemap"]),
    ("q", &["cite"]),
    ("script", &["src"]),
    ("source", &["src"]),
    ("video", &["poster", "src"]),
];

/// Where a proxied server is, for itself and below the proxy.
pub struct Proxied {
    /// `host:port`, as the server knows itself.
    pub authority: String,
    /// The path of the proxy, without a slash at its end.
    pub prefix: String,
}

impl Proxied {
    /// The link below the proxy; `None` for one that stays as it is.
    pub fn rewrite(&self, link: &str) -> Option<String> {
        let path = match link.split_once("://") {
            Some(("http" | "https", rest)) => rest
                .strip_prefix(self.authority.as_str())
                .filter(|rest| rest.is_empty() || rest.starts_with('/'))?,
            Some(_) => return None,
            None if link.starts_with("//") => {
                link[2..].strip_prefix(self.authority.as_str()).filter(|rest| rest.starts_with('/'))?
            }
            None => link,
        };
        (path.starts_with('/') && !path.starts_with(self.prefix.as_str()))
            .then(|| format!("{}{path}", self.prefix))
    }

    /// The page with all links rewritten; everything else stays byte for byte.
    pub fn rewrite_page(&self, page: &str) -> String {
        let mut out = String::with_capacity(page.len() + page.len() / 16);
        let mut rest = page;
        while let Some(at) = rest.find('<') {
            out.push_str(&rest[..at]);
            rest = &rest[at..];
            if rest.starts_with("<!--") {
                let end = rest.find("-->").map_or(rest.len(), |end| end + 3);
                out.push_str(&rest[..end]);
                rest = &rest[end..];
                continue;
            }
            let end = tag_end(rest);
            let tag = &rest[..end];
            self.rewrite_tag(tag, &mut out);
            rest = &rest[end..];
            rest = skip_raw_text(tag, rest, &mut out);
        }
        out.push_str(rest);
        out
    }

    fn rewrite_tag(&self, tag: &str, out: &mut String) {
        let name = element(tag);
        let Some((_, attributes)) = LINKS.iter().find(|(element, _)| name.eq_ignore_ascii_case(element))
        else {
            out.push_str(tag);
            return;
        };
        let mut rest = tag;
        let mut at = 1 + name.len();
        while let Some((key, value)) = next_attribute(rest, at) {
            let text = &rest[value.clone()];
            let replaced = attributes
                .iter()
                .any(|attribute| rest[key.clone()].eq_ignore_ascii_case(attribute))
                .then(|| self.rewrite(text))
                .flatten();
            if let Some(link) = replaced {
                out.push_str(&rest[..value.start]);
                out.push_str(&link);
                rest = &rest[value.end..];
                at = 0;
            } else {
                at = value.end;
            }
        }
        out.push_str(rest);
    }
}

/// Where the tag ends that the text begins with: behind the `>` that is in no quotes.
fn tag_end(text: &str) -> usize {
    let mut quote = None;
    for (at, byte) in text.bytes().enumerate() {
        match (quote, byte) {
            (None, b'>') => return at + 1,
            (None, b'"' | b'\'') => quote = Some(byte),
            (Some(open), byte) if open == byte => quote = None,
            _ => {}
        }
    }
    text.len()
}

/// The element's name; empty for an end tag.
fn element(tag: &str) -> &str {
    let rest = &tag[1..];
    let end = rest.find(|c: char| !c.is_ascii_alphanumeric()).unwrap_or(rest.len());
    &rest[..end]
}

/// The next attribute with a value: where its name is, and its value without quotes.
fn next_attribute(tag: &str, from: usize) -> Option<(std::ops::Range<usize>, std::ops::Range<usize>)> {
    let equals = from + tag.get(from..)?.find('=')?;
    let before = tag[from..equals].trim_end();
    let start =
        before.rfind(|c: char| c.is_whitespace() || matches!(c, '"' | '\'' | '/')).map_or(0, |at| at + 1);
    let key = from + start..from + before.len();
    let after = &tag[equals + 1..];
    let open = equals + 1 + (after.len() - after.trim_start().len());
    let value = &tag[open..];
    let range = match value.bytes().next()? {
        quote @ (b'"' | b'\'') => {
            let close = value[1..].find(char::from(quote)).map_or(value.len(), |at| at + 1);
            open + 1..open + close
        }
        _ => {
            let end = value.find(|c: char| c.is_whitespace() || c == '>').unwrap_or(value.len());
            open..open + end
        }
    };
    Some((key, range))
}

/// What is between the tags of a script or a style is no markup.
fn skip_raw_text<'p>(tag: &str, rest: &'p str, out: &mut String) -> &'p str {
    let name = element(tag);
    if !["script", "style"].iter().any(|raw| name.eq_ignore_ascii_case(raw)) || tag.ends_with("/>") {
        return rest;
    }
    let close = format!("</{}", name.to_ascii_lowercase());
    let end = rest.to_ascii_lowercase().find(&close).unwrap_or(rest.len());
    out.push_str(&rest[..end]);
    &rest[end..]
}

#[cfg(test)]
mod tests {
    use super::*;

    fn proxied() -> Proxied {
        Proxied { authority: "10.0.0.1:80".into(), prefix: "/api/v1/namespaces/n/pods/p/proxy".into() }
    }

    #[test]
    fn links_of_the_proxied_server_alone_are_rewritten() {
        for (link, expected) in [
            ("/x/", Some("/api/v1/namespaces/n/pods/p/proxy/x/")),
            ("/", Some("/api/v1/namespaces/n/pods/p/proxy/")),
            ("x", None),
            ("?q", None),
            ("http://10.0.0.1:80/y?z#f", Some("/api/v1/namespaces/n/pods/p/proxy/y?z#f")),
            ("//10.0.0.1:80/y", Some("/api/v1/namespaces/n/pods/p/proxy/y")),
            ("https://example.com/y", None),
            ("mailto://10.0.0.1:80/y", None),
            ("/api/v1/namespaces/n/pods/p/proxy/x", None),
        ] {
            assert_eq!(proxied().rewrite(link).as_deref(), expected, "{link}");
        }
    }

    #[test]
    fn pages_keep_everything_but_their_links() {
        for (page, expected) in [
            (r#"<a href="/x">y</a>"#, r#"<a href="PRE/x">y</a>"#),
            (r#"<A class=b HREF='/x' id="/x">"#, r#"<A class=b HREF='PRE/x' id="/x">"#),
            ("<img src=/x usemap=/m>", "<img src=PRE/x usemap=PRE/m>"),
            ("<p href=\"/x\"> 1 < 2 </p>", "<p href=\"/x\"> 1 < 2 </p>"),
            ("<!-- <a href=\"/x\"> --><a href=\"/y\">", "<!-- <a href=\"/x\"> --><a href=\"PRE/y\">"),
            ("<script>a='<a href=\"/x\">'</script>", "<script>a='<a href=\"/x\">'</script>"),
            ("<script src=\"/s\"></script>", "<script src=\"PRE/s\"></script>"),
            ("<a title=\"a>b\" href=\"/x\">", "<a title=\"a>b\" href=\"PRE/x\">"),
            ("<a href=\"/x", "<a href=\"PRE/x"),
            ("<a href", "<a href"),
            ("<", "<"),
            ("ä<a href=\"/ö\">ü", "ä<a href=\"PRE/ö\">ü"),
        ] {
            let expected = expected.replace("PRE", &proxied().prefix);
            assert_eq!(proxied().rewrite_page(page), expected, "{page}");
        }
    }
}
