//! Builders and servers for tests. Only a dev-dependency.
