use super::*;

#[test]
fn the_group_and_version_of_a_path_are_found() {
    for (path, expected) in [
        ("/apis/g.x/v1", Some(("g.x", "v1"))),
        ("/apis/g.x/v1/", Some(("g.x", "v1"))),
        ("/openapi/v3/apis/g.x/v1", Some(("g.x", "v1"))),
        ("/apis/g.x", None),
        ("/apis/g.x/", None),
        ("/healthz", None),
    ] {
        assert_eq!(group_version(path), expected, "{path}");
    }
}
