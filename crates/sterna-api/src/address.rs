//! Addresses as people write them: `b`, `b:7401`, `192.0.2.1`, `fd00::2`, `[fd00::2]:7401`.

/// Splits an address into a host and a port, which is `usual` if none is given.
///
/// # Errors
/// When it is none, in words.
pub fn split(text: &str, usual: u16) -> Result<(&str, u16), String> {
    let port = |text: &str| text.parse().map_err(|_| format!("{text:?} is no port"));
    if let Some(rest) = text.strip_prefix('[') {
        let (host, rest) =
            rest.split_once(']').ok_or_else(|| format!("{text:?} lacks a bracket"))?;
        return match rest.strip_prefix(':') {
            Some(text) => Ok((host, port(text)?)),
            None if rest.is_empty() => Ok((host, usual)),
            None => Err(format!("{rest:?} after the address is no port")),
        };
    }
    match text.split_once(':') {
        Some((host, text)) if !text.contains(':') => Ok((host, port(text)?)),
        // An IPv6 address without brackets, or a bare name.
        Some(_) | None => Ok((text, usual)),
    }
}

/// Puts a host and a port together, as [`split`] takes them apart.
#[must_use]
pub fn join(host: &str, port: u16) -> String {
    match host.contains(':') {
        true => format!("[{host}]:{port}"),
        false => format!("{host}:{port}"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_address_is_a_host_and_perhaps_a_port() {
        for (text, host, port) in [
            ("b", "b", 7401),
            ("b:9", "b", 9),
            ("10.0.0.2:9", "10.0.0.2", 9),
            ("fd00::2", "fd00::2", 7401),
            ("[fd00::2]", "fd00::2", 7401),
            ("[fd00::2]:9", "fd00::2", 9),
        ] {
            assert_eq!(split(text, 7401), Ok((host, port)), "{text}");
            assert_eq!(split(&join(host, port), 1), Ok((host, port)), "{text}");
        }
        for wrong in ["b:x", "b:70000", "[fd00::2", "[fd00::2]9"] {
            assert!(split(wrong, 7401).is_err(), "{wrong}");
        }
    }
}
