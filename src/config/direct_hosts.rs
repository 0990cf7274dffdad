//! The hosts that `no_proxy` lists.

use std::net::IpAddr;

/// The hosts that are dialed without a proxy, by the rules of curl.
#[derive(Clone, Default)]
pub(super) struct DirectHosts {
    all: bool,
    /// In lower case, without dots at their ends.
    names: Vec<String>,
    networks: Vec<Network>,
}

/// The addresses that begin with the first `bits` bits of `address`.
#[derive(Clone)]
struct Network {
    address: IpAddr,
    bits: u32,
}

impl DirectHosts {
    pub(super) fn parse(list: &str) -> Self {
        let mut hosts = DirectHosts { all: list.trim() == "*", ..DirectHosts::default() };
        for entry in list.split([',', ' ', '\t']).filter(|entry| !entry.is_empty()) {
            match Network::parse(entry) {
                Some(network) => hosts.networks.push(network),
                None => hosts.names.push(entry.trim_matches('.').to_ascii_lowercase()),
            }
        }
        // An entry of dots alone would be the end of every name.
        hosts.names.retain(|name| !name.is_empty());
        hosts
    }

    pub(super) fn contains(&self, host: &str) -> bool {
        if self.all {
            return true;
        }
        if let Ok(address) = host.parse() {
            return self.networks.iter().any(|network| network.contains(address));
        }
        let host = host.trim_end_matches('.').to_ascii_lowercase();
        self.names.iter().any(|name| {
            host.strip_suffix(name.as_str())
                .is_some_and(|above| above.is_empty() || above.ends_with('.'))
        })
    }
}

impl Network {
    fn parse(entry: &str) -> Option<Self> {
        let (address, bits) = match entry.split_once('/') {
            None => (entry, None),
            Some((address, bits)) => (address, Some(bits.parse::<u32>().ok()?)),
        };
        let address =
            address.strip_prefix('[').and_then(|v6| v6.strip_suffix(']')).unwrap_or(address);
        let address: IpAddr = address.parse().ok()?;
        let all = if address.is_ipv4() { 32 } else { 128 };
        let bits = bits.unwrap_or(all);
        (bits <= all).then_some(Network { address, bits })
    }

    fn contains(&self, address: IpAddr) -> bool {
        match (self.address, address) {
            (IpAddr::V4(network), IpAddr::V4(address)) => {
                let differing = network.to_bits() ^ address.to_bits();
                differing.leading_zeros() >= self.bits
            }
            (IpAddr::V6(network), IpAddr::V6(address)) => {
                let differing = network.to_bits() ^ address.to_bits();
                differing.leading_zeros() >= self.bits
            }
            _ => false,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn hosts_are_dialed_directly_by_the_rules_of_curl() {
        for (list, hosts, others) in [
            ("*", "a.example 10.0.0.1 ::1", ""),
            ("", "", "a.example"),
            ("*.a.example", "", "b.a.example"),
            ("a.example", "a.example A.EXAMPLE a.example. b.a.example", "ba.example example"),
            (".a.example.", "a.example b.a.example", "example"),
            ("x,a.example b.example", "x a.example b.example", "c.example"),
            ("10.0.0.0/8", "10.1.2.3", "11.0.0.0 10.example"),
            ("10.1.2.3", "10.1.2.3", "10.1.2.4"),
            ("0.0.0.0/0", "1.2.3.4", "::1"),
            ("[::1],fe80::/10", "::1 fe80::1 febf::1", "::2 fec0::1"),
            ("10.0.0.0/33 . ,", "", "10.0.0.0 a.example"),
            ("* a", "a", "b"),
        ] {
            let direct = DirectHosts::parse(list);
            for (hosts, expected) in [(hosts, true), (others, false)] {
                for host in hosts.split(' ').filter(|host| !host.is_empty()) {
                    assert_eq!(direct.contains(host), expected, "{list}: {host}");
                }
            }
        }
    }
}
