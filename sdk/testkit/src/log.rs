//! Where log lines of components go: into the simulated system, by component. Lines of threads that
//! belong to none are dropped.

use std::cell::RefCell;
use std::sync::{Arc, Once};

use log::{Level, LevelFilter, Log, Metadata, Record};

use crate::state::Shared;

thread_local! {
    static PLACE: RefCell<Option<(Arc<Shared>, usize)>> = const { RefCell::new(None) };
}

struct Lines;

impl Log for Lines {
    fn enabled(&self, _: &Metadata<'_>) -> bool {
        true
    }

    fn log(&self, record: &Record<'_>) {
        let Some((shared, component)) = PLACE.with_borrow(Clone::clone) else {
            return;
        };
        let line = match record.level() {
            Level::Info => record.args().to_string(),
            level => format!("{level}: {}", record.args()),
        };
        shared.lock().members[component].log.push(line);
    }

    fn flush(&self) {}
}

/// Makes `log`'s macros arrive here.
pub(crate) fn install() {
    static ONCE: Once = Once::new();
    ONCE.call_once(|| {
        // A test that brings a logger of its own keeps it, and systems have no lines.
        if log::set_logger(&Lines).is_ok() {
            log::set_max_level(LevelFilter::Trace);
        }
    });
}

/// Lines of this thread are a component's from now on.
pub(crate) fn enter(shared: &Arc<Shared>, component: usize) {
    PLACE.set(Some((Arc::clone(shared), component)));
}

pub(crate) fn leave() {
    PLACE.set(None);
}

pub(crate) fn in_component() -> bool {
    PLACE.with_borrow(Option::is_some)
}
