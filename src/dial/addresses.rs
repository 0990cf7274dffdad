//! The order in which the addresses of an endpoint are tried. Pure: no sockets, no clock.

use std::collections::VecDeque;
use std::net::{IpAddr, SocketAddr};

/// The most addresses of a host that a dial tries, so that a hostile name cannot cost a descriptor
/// for each of a thousand addresses.
pub(crate) const ADDRESSES_MAX: usize = 16;

/// The addresses of a host in the order of the resolver: distinct, and at most [`ADDRESSES_MAX`] of
/// each family.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Candidates(Vec<SocketAddr>);

/// The addresses whose dial failed after TCP had connected. They are tried last.
///
/// An address that accepts connections and then closes, refuses the upgrade or hangs would win
/// every dial if it came first. It is remembered until a dial of it succeeds, and the address that
/// failed most recently comes last. Even if all of them have failed, each gets its turn.
pub(crate) struct AddressMemory {
    /// The endpoint that failed most recently comes last.
    endpoints: VecDeque<Failures>,
    endpoints_max: usize,
}

/// The failures of one endpoint.
struct Failures {
    host: String,
    port: u16,
    /// The address that failed most recently comes last. At most [`ADDRESSES_MAX`].
    addresses: VecDeque<SocketAddr>,
}

impl Candidates {
    pub(crate) fn new(addresses: impl IntoIterator<Item = SocketAddr>) -> Self {
        let mut chosen: Vec<SocketAddr> = Vec::new();
        let (mut v4, mut v6) = (0, 0);
        for address in addresses {
            let count = if address.is_ipv4() { &mut v4 } else { &mut v6 };
            if *count < ADDRESSES_MAX && !chosen.contains(&address) {
                *count += 1;
                chosen.push(address);
            }
        }
        Candidates(chosen)
    }

    /// Returns the address that the resolver prefers.
    #[cfg(shuttle)]
    pub(crate) fn first(&self) -> SocketAddr {
        self.0[0]
    }

    pub(crate) fn is_empty(&self) -> bool {
        self.0.is_empty()
    }
}

impl AddressMemory {
    /// Remembers the failures of at most `endpoints_max` endpoints.
    pub(crate) fn new(endpoints_max: usize) -> Self {
        AddressMemory { endpoints: VecDeque::new(), endpoints_max: endpoints_max.max(1) }
    }

    /// Returns the addresses to try, at most [`ADDRESSES_MAX`]: families take turns (RFC 8305
    /// section 4), and addresses that have failed come last. With `bind`, only the addresses of its
    /// family remain.
    pub(crate) fn order(
        &self,
        host: &str,
        port: u16,
        candidates: Candidates,
        bind: Option<IpAddr>,
    ) -> VecDeque<SocketAddr> {
        let fits =
            |address: &SocketAddr| bind.is_none_or(|bind| bind.is_ipv4() == address.is_ipv4());
        let mut chosen = interleaved(candidates.0.into_iter().filter(fits));
        chosen.truncate(ADDRESSES_MAX);
        let failed = self.endpoints.iter().find(|failures| failures.is_of(host, port));
        let mut last: Vec<SocketAddr> =
            failed.map(|failures| failures.addresses.iter().copied().collect()).unwrap_or_default();
        last.retain(|address| chosen.contains(address));
        chosen.retain(|address| !last.contains(address));
        // Anew: without the failed ones, the families may no longer take turns.
        interleaved(chosen).into_iter().chain(last).collect()
    }

    /// Remembers that a dial of `address` has failed after TCP had connected.
    pub(crate) fn failed(&mut self, host: &str, port: u16, address: SocketAddr) {
        let known = self.endpoints.iter().position(|failures| failures.is_of(host, port));
        let mut failures =
            known.and_then(|index| self.endpoints.remove(index)).unwrap_or_else(|| Failures {
                host: host.to_owned(),
                port,
                addresses: VecDeque::new(),
            });
        failures.addresses.retain(|known| *known != address);
        failures.addresses.push_back(address);
        if failures.addresses.len() > ADDRESSES_MAX {
            failures.addresses.pop_front();
        }
        self.endpoints.push_back(failures);
        if self.endpoints.len() > self.endpoints_max {
            self.endpoints.pop_front();
        }
    }

    /// Forgets the failure of `address`, because a dial of it has succeeded.
    pub(crate) fn succeeded(&mut self, host: &str, port: u16, address: SocketAddr) {
        for failures in self.endpoints.iter_mut().filter(|failures| failures.is_of(host, port)) {
            failures.addresses.retain(|known| *known != address);
        }
        self.endpoints.retain(|failures| !failures.addresses.is_empty());
    }
}

impl Failures {
    fn is_of(&self, host: &str, port: u16) -> bool {
        self.port == port && self.host == host
    }
}

/// Returns the addresses with their families in turn, beginning with the family of the first.
fn interleaved(addresses: impl IntoIterator<Item = SocketAddr>) -> Vec<SocketAddr> {
    let addresses: Vec<SocketAddr> = addresses.into_iter().collect();
    let first_is_v4 = addresses.first().is_some_and(SocketAddr::is_ipv4);
    let (first, second): (Vec<_>, Vec<_>) =
        addresses.into_iter().partition(|address| address.is_ipv4() == first_is_v4);
    let mut order = Vec::new();
    let (mut first, mut second) = (first.into_iter(), second.into_iter());
    loop {
        let pair = [first.next(), second.next()];
        if pair == [None, None] {
            return order;
        }
        order.extend(pair.into_iter().flatten());
    }
}

/// Carries out the dials that `bytes` describe, and checks each order against a simple model.
#[cfg(any(test, all(feature = "_internals", unix)))]
pub(crate) fn fuzz_addresses(bytes: &[u8]) {
    // 64 addresses, half of them of each family.
    let address = |byte: u8| {
        let ip: IpAddr = match byte & 32 {
            0 => [127, 0, 0, byte & 31].into(),
            _ => [0, 0, 0, 0, 0, 0, 0, u16::from(byte & 31)].into(),
        };
        SocketAddr::new(ip, 1)
    };
    let hosts = ["a.example", "b.example", "c.example"];
    // One less than there are hosts: the one whose last failure is the oldest is forgotten.
    let mut memory = AddressMemory::new(hosts.len() - 1);
    let mut model: Vec<(&str, Vec<SocketAddr>)> = Vec::new();
    let mut rest = bytes;
    while let [shape, after @ ..] = rest {
        let host = hosts[usize::from(shape & 3) % hosts.len()];
        let count = usize::from(shape >> 3).min(after.len());
        let (resolved, after) = after.split_at(count);
        rest = after;
        let resolved: Vec<SocketAddr> = resolved.iter().copied().map(address).collect();
        let order = memory.order(host, 1, Candidates::new(resolved.iter().copied()), None);

        let mut distinct: Vec<SocketAddr> = Vec::new();
        for address in &resolved {
            if !distinct.contains(address) {
                distinct.push(*address);
            }
        }
        assert_eq!(order.len(), distinct.len().min(ADDRESSES_MAX));
        let is_new = |index: usize| !order.iter().take(index).any(|known| *known == order[index]);
        assert!((0..order.len()).all(|index| is_new(index) && distinct.contains(&order[index])));
        if distinct.len() <= ADDRESSES_MAX || distinct.iter().all(SocketAddr::is_ipv4) {
            assert!(distinct.iter().take(ADDRESSES_MAX).all(|address| order.contains(address)));
        }
        let failed: Vec<SocketAddr> = model
            .iter()
            .filter(|(of, _)| *of == host)
            .flat_map(|(_, failed)| failed.iter().copied())
            .filter(|failed| order.contains(failed))
            .collect();
        let healthy = order.len() - failed.len();
        assert!(order.range(healthy..).eq(&failed), "{order:?} {failed:?}");
        // Once two of a family follow one another, the other family has run out.
        let families: Vec<bool> = order.range(..healthy).map(SocketAddr::is_ipv4).collect();
        let pair = families.windows(2).position(|pair| pair[0] == pair[1]).unwrap_or(healthy);
        assert!(families.iter().skip(pair).all(|family| *family == families[pair]));

        let Some(&dialed) = order.front() else { continue };
        let known = model.iter().position(|(of, _)| *of == host);
        let mut failures = known.map(|index| model.remove(index).1).unwrap_or_default();
        failures.retain(|known| *known != dialed);
        match shape & 4 {
            0 => {
                memory.succeeded(host, 1, dialed);
                match known {
                    Some(index) if !failures.is_empty() => model.insert(index, (host, failures)),
                    _ => {}
                }
            }
            _ => {
                memory.failed(host, 1, dialed);
                failures.push(dialed);
                let excess = failures.len().saturating_sub(ADDRESSES_MAX);
                model.push((host, failures.split_off(excess)));
                if model.len() == hosts.len() {
                    model.remove(0);
                }
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::property;

    fn address(text: &str) -> SocketAddr {
        text.parse().expect("an address")
    }

    fn candidates(texts: &[&str]) -> Candidates {
        Candidates::new(texts.iter().map(|text| address(text)))
    }

    fn order(memory: &AddressMemory, host: &str, texts: &[&str]) -> Vec<String> {
        let order = memory.order(host, 1, candidates(texts), None);
        order.iter().map(ToString::to_string).collect()
    }

    #[test]
    fn whatever_fails_and_succeeds_the_order_is_as_the_model_says() {
        property::check(256, |rng| fuzz_addresses(&property::bytes(rng, 0..1000)));
    }

    #[test]
    fn families_take_turns_and_the_first_keeps_its_place() {
        let memory = AddressMemory::new(1);
        let texts = ["[::1]:1", "[::2]:1", "[::3]:1", "1.1.1.1:1", "1.1.1.1:1"];
        assert_eq!(order(&memory, "a", &texts), ["[::1]:1", "1.1.1.1:1", "[::2]:1", "[::3]:1"]);
        let bind = Some("127.0.0.1".parse().expect("an address"));
        assert_eq!(memory.order("a", 1, candidates(&texts), bind), [address("1.1.1.1:1")]);
    }

    #[test]
    fn of_many_addresses_the_first_sixteen_are_tried_and_no_family_is_crowded_out() {
        let memory = AddressMemory::new(1);
        let many: Vec<SocketAddr> =
            (0..200).map(|host| address(&format!("[::{host:x}]:1"))).collect();
        let v6_alone = memory.order("a", 1, Candidates::new(many.iter().copied()), None);
        assert_eq!(v6_alone, &many[..ADDRESSES_MAX]);
        let v4 = address("1.1.1.1:1");
        let both = memory.order("a", 1, Candidates::new(many.iter().copied().chain([v4])), None);
        assert_eq!((both.len(), both[0], both[1]), (ADDRESSES_MAX, many[0], v4));
    }

    #[test]
    fn an_address_that_failed_comes_last_until_it_succeeds() {
        let mut memory = AddressMemory::new(1);
        let texts = ["1.1.1.1:1", "1.1.1.2:1", "1.1.1.3:1"];
        memory.failed("a", 1, address("1.1.1.1:1"));
        assert_eq!(order(&memory, "a", &texts), ["1.1.1.2:1", "1.1.1.3:1", "1.1.1.1:1"]);
        memory.succeeded("a", 1, address("1.1.1.2:1"));
        assert_eq!(order(&memory, "a", &texts), ["1.1.1.2:1", "1.1.1.3:1", "1.1.1.1:1"]);
        memory.succeeded("a", 1, address("1.1.1.1:1"));
        assert_eq!(order(&memory, "a", &texts), texts);
        assert!(memory.endpoints.is_empty());
    }

    #[test]
    fn addresses_that_all_fail_take_turns() {
        let mut memory = AddressMemory::new(1);
        let texts = ["1.1.1.1:1", "1.1.1.2:1", "1.1.1.3:1"];
        for turn in 0..9 {
            let first = order(&memory, "a", &texts).swap_remove(0);
            assert_eq!(first, texts[turn % texts.len()]);
            memory.failed("a", 1, address(&first));
        }
    }

    #[test]
    fn families_take_turns_without_the_addresses_that_failed() {
        let mut memory = AddressMemory::new(1);
        memory.failed("a", 1, address("1.1.1.1:1"));
        assert_eq!(
            order(&memory, "a", &["[::1]:1", "1.1.1.1:1", "[::2]:1", "1.1.1.2:1"]),
            ["[::1]:1", "1.1.1.2:1", "[::2]:1", "1.1.1.1:1"]
        );
    }

    #[test]
    fn failures_belong_to_one_endpoint_and_their_number_is_bounded() {
        let mut memory = AddressMemory::new(2);
        let texts = ["1.1.1.1:1", "1.1.1.2:1"];
        memory.failed("a", 1, address("1.1.1.1:1"));
        assert_eq!(order(&memory, "b", &texts), texts);
        memory.failed("b", 1, address("1.1.1.1:1"));
        memory.failed("c", 1, address("1.1.1.1:1"));
        assert_eq!(order(&memory, "a", &texts), texts, "the oldest is forgotten");
        assert_eq!(order(&memory, "b", &texts), ["1.1.1.2:1", "1.1.1.1:1"]);
        for host in 0..=255 {
            memory.failed("a", 1, ([1, 1, 1, host], 1).into());
        }
        assert_eq!(memory.endpoints.len(), 2);
        assert_eq!(memory.endpoints[1].addresses.len(), ADDRESSES_MAX);
    }
}
