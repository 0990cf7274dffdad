//! A recorder that keeps every value, and lets tests wait for them.

use std::cell::Cell;
use std::collections::BTreeMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use metrics::{
    Counter, CounterFn, Gauge, GaugeFn, Histogram, HistogramFn, Key, KeyName, Metadata, Recorder,
    SharedString, Unit,
};
use parking_lot::{Condvar, Mutex};

/// The longest wait for a value.
pub(crate) const SOON: Duration = Duration::from_secs(20);

/// The name of a client for which the recorder panics.
pub(crate) const PANICS: &str = "panics";

/// The name of a client that the recorder refuses to register metrics of, by a panic.
pub(crate) const REFUSED: &str = "refused";

/// The name of a client whose handles panic when they are dropped.
pub(crate) const PANICS_ON_DROP: &str = "panics on drop";

/// Code that runs whenever the recorder is told something.
type Hook = Arc<dyn Fn() + Send + Sync>;

/// The recorder of this process.
#[derive(Default)]
pub(crate) struct Kept {
    inner: Mutex<Inner>,
    /// Signalled when a value changes.
    changed: Condvar,
    hooks: Mutex<BTreeMap<String, Hook>>,
    /// The number of panics for the client of that name.
    pub(crate) panics: AtomicUsize,
    /// The number of panics of handles that were dropped.
    pub(crate) drops: AtomicUsize,
}

#[derive(Default)]
struct Inner {
    series: BTreeMap<Series, Value>,
    described: BTreeMap<String, (&'static str, Option<Unit>)>,
}

/// A name and its labels, in their order.
pub(crate) type Series = (String, Vec<(String, String)>);

/// A counter or gauge has its value, a histogram all that were recorded.
#[derive(Clone, Debug, PartialEq)]
pub(crate) enum Value {
    Counter(u64),
    Gauge(f64),
    Histogram(Vec<f64>),
}

impl Kept {
    /// Installs the recorder, once.
    pub(crate) fn installed() -> &'static Kept {
        static KEPT: std::sync::OnceLock<&'static Kept> = std::sync::OnceLock::new();
        KEPT.get_or_init(|| {
            let kept: &'static Kept = Box::leak(Box::default());
            metrics::set_global_recorder(kept).expect("it is the first recorder");
            kept
        })
    }

    /// Runs `hook` whenever the recorder is told something of this client, but not of what the hook
    /// itself brings about.
    pub(crate) fn set_hook(&self, client: &str, hook: impl Fn() + Send + Sync + 'static) {
        self.hooks.lock().insert(client.to_owned(), Arc::new(hook));
    }

    pub(crate) fn remove_hook(&self, client: &str) {
        self.hooks.lock().remove(client);
    }

    /// Returns every series that there is.
    pub(crate) fn series(&self) -> BTreeMap<Series, Value> {
        self.inner.lock().series.clone()
    }

    /// Returns the type and the unit of every metric that has been described.
    pub(crate) fn described(&self) -> BTreeMap<String, (&'static str, Option<Unit>)> {
        self.inner.lock().described.clone()
    }

    /// Returns the value of a series, which has to exist.
    pub(crate) fn value(&self, name: &str, labels: &[(&str, &str)]) -> Value {
        let inner = self.inner.lock();
        let series = series(name, labels);
        inner.series.get(&series).unwrap_or_else(|| panic!("there is no {series:?}")).clone()
    }

    pub(crate) fn count(&self, name: &str, labels: &[(&str, &str)]) -> u64 {
        match self.value(name, labels) {
            Value::Counter(count) => count,
            other => panic!("{name} is no counter: {other:?}"),
        }
    }

    pub(crate) fn gauge(&self, name: &str, labels: &[(&str, &str)]) -> f64 {
        match self.value(name, labels) {
            Value::Gauge(value) => value,
            other => panic!("{name} is no gauge: {other:?}"),
        }
    }

    pub(crate) fn recorded(&self, name: &str, labels: &[(&str, &str)]) -> Vec<f64> {
        match self.value(name, labels) {
            Value::Histogram(values) => values,
            other => panic!("{name} is no histogram: {other:?}"),
        }
    }

    /// Waits until a series has a value that `is_it` takes.
    pub(crate) fn wait(&self, name: &str, labels: &[(&str, &str)], is_it: impl Fn(&Value) -> bool) {
        let (series, deadline) = (series(name, labels), Instant::now() + SOON);
        let mut inner = self.inner.lock();
        while !inner.series.get(&series).is_some_and(&is_it) {
            let is_late = self.changed.wait_until(&mut inner, deadline).timed_out();
            assert!(!is_late, "{series:?} is {:?}", inner.series.get(&series));
        }
    }

    pub(crate) fn wait_count(&self, name: &str, labels: &[(&str, &str)], count: u64) {
        self.wait(name, labels, |value| *value == Value::Counter(count));
    }

    pub(crate) fn wait_gauge(&self, name: &str, labels: &[(&str, &str)], expected: f64) {
        self.wait(name, labels, |value| *value == Value::Gauge(expected));
    }

    fn describe(&self, name: KeyName, kind: &'static str, unit: Option<Unit>) {
        self.inner.lock().described.insert(name.as_str().to_owned(), (kind, unit));
    }

    fn handle(&'static self, key: &Key, value: Value) -> Arc<Handle> {
        let mut labels: Vec<(String, String)> =
            key.labels().map(|label| (label.key().to_owned(), label.value().to_owned())).collect();
        labels.sort();
        if labels.iter().any(|(_, value)| value == REFUSED) {
            std::panic::resume_unwind(Box::new("on purpose"));
        }
        let series = (key.name().to_owned(), labels);
        self.inner.lock().series.entry(series.clone()).or_insert(value);
        Arc::new(Handle { kept: self, series })
    }
}

fn series(name: &str, labels: &[(&str, &str)]) -> Series {
    let mut labels: Vec<(String, String)> =
        labels.iter().map(|(key, value)| ((*key).to_owned(), (*value).to_owned())).collect();
    labels.sort();
    (name.to_owned(), labels)
}

impl Recorder for &'static Kept {
    fn describe_counter(&self, name: KeyName, unit: Option<Unit>, _: SharedString) {
        self.describe(name, "counter", unit);
    }

    fn describe_gauge(&self, name: KeyName, unit: Option<Unit>, _: SharedString) {
        self.describe(name, "gauge", unit);
    }

    fn describe_histogram(&self, name: KeyName, unit: Option<Unit>, _: SharedString) {
        self.describe(name, "histogram", unit);
    }

    fn register_counter(&self, key: &Key, _: &Metadata<'_>) -> Counter {
        Counter::from_arc(self.handle(key, Value::Counter(0)))
    }

    fn register_gauge(&self, key: &Key, _: &Metadata<'_>) -> Gauge {
        Gauge::from_arc(self.handle(key, Value::Gauge(0.0)))
    }

    fn register_histogram(&self, key: &Key, _: &Metadata<'_>) -> Histogram {
        Histogram::from_arc(self.handle(key, Value::Histogram(Vec::new())))
    }
}

/// The handle of one series.
struct Handle {
    kept: &'static Kept,
    series: Series,
}

thread_local! {
    static IS_IN_HOOK: Cell<bool> = const { Cell::new(false) };
}

impl Handle {
    fn change(&self, change: impl FnOnce(&mut Value)) {
        let client = self.series.1.iter().find(|(key, _)| key == "client");
        let client = client.map_or("", |(_, client)| client.as_str());
        if client == PANICS {
            self.kept.panics.fetch_add(1, Ordering::Relaxed);
            std::panic::resume_unwind(Box::new("on purpose"));
        }
        change(self.kept.inner.lock().series.get_mut(&self.series).expect("it was registered"));
        self.kept.changed.notify_all();
        let hook = self.kept.hooks.lock().get(client).cloned();
        if let Some(hook) = hook.filter(|_| !IS_IN_HOOK.replace(true)) {
            hook();
            IS_IN_HOOK.set(false);
        }
    }
}

impl Drop for Handle {
    fn drop(&mut self) {
        if self.series.1.iter().any(|(_, value)| value == PANICS_ON_DROP) {
            self.kept.drops.fetch_add(1, Ordering::Relaxed);
            std::panic::resume_unwind(Box::new("on purpose"));
        }
    }
}

impl CounterFn for Handle {
    fn increment(&self, by: u64) {
        self.change(|value| match value {
            Value::Counter(count) => *count += by,
            other => panic!("no counter: {other:?}"),
        });
    }

    fn absolute(&self, _: u64) {
        panic!("clients of one name share their counters: they are never set");
    }
}

impl GaugeFn for Handle {
    fn increment(&self, by: f64) {
        self.change(|value| match value {
            Value::Gauge(gauge) => *gauge += by,
            other => panic!("no gauge: {other:?}"),
        });
    }

    fn decrement(&self, by: f64) {
        GaugeFn::increment(self, -by);
    }

    fn set(&self, to: f64) {
        self.change(|value| *value = Value::Gauge(to));
    }
}

impl HistogramFn for Handle {
    fn record(&self, one: f64) {
        self.change(|value| match value {
            Value::Histogram(values) => values.push(one),
            other => panic!("no histogram: {other:?}"),
        });
    }
}
