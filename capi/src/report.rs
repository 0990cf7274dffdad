//! Reports of stops.

use std::ffi::CString;
use std::ptr::null;
use std::sync::atomic::{AtomicU64, Ordering};

use client::{StopReport, ThreadOutcome};

use crate::border::{c_string, infallible};
use crate::clock::nanos_of;
use crate::handle::{FREED, Retired};
use crate::types::{tl_status, tl_stop_report, tl_thread_outcome, tl_thread_report};

/// Frees a stop report. NULL does nothing.
///
/// Threads: any, one at a time. Blocks: never. Ownership: `report`, its text and its rows are gone
/// afterwards; a second time is logged and does nothing. Errors: none.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn tl_stop_report_free(report: *mut tl_stop_report) {
    static RETIRED: Retired = Retired::new();
    infallible((), || {
        if report.is_null() {
            return;
        }
        let full = report.cast::<FullReport>();
        let change = |magic: &AtomicU64| {
            magic.compare_exchange(REPORT, FREED, Ordering::AcqRel, Ordering::Acquire)
        };
        // SAFETY: every report is the beginning of a `FullReport`.
        if !full.is_aligned() || change(unsafe { &(*full).magic }).is_err() {
            log::error!("a tl_stop_report was freed twice, or is none");
            return;
        }
        // SAFETY: `told` made the box, and `magic` has made this the one call that takes it.
        let mut full = unsafe { Box::from_raw(full) };
        full.view.text = c"(a freed report)".as_ptr();
        full.view.thread_count = 0;
        (full.text, full.names, full.rows) = Default::default();
        RETIRED.keep(full);
    });
}

const REPORT: u64 = u64::from_be_bytes(*b"tlreport");

#[repr(C)]
struct FullReport {
    view: tl_stop_report,
    magic: AtomicU64,
    text: CString,
    names: Vec<CString>,
    rows: Vec<tl_thread_report>,
}

// SAFETY: its pointers are to constants and to what it owns.
unsafe impl Send for FullReport {}

/// Gives the program the report, if it wants it, and returns the status of a stop.
///
/// # Safety
/// `place` is null, or a place for a pointer.
pub(crate) unsafe fn told(report: &StopReport, place: *mut *mut tl_stop_report) -> tl_status {
    if !place.is_null() {
        let text = c_string(report.to_string());
        let names: Vec<_> = report.threads().iter().map(|thread| c_string(thread.name)).collect();
        let rows: Vec<_> = report
            .threads()
            .iter()
            .map(|thread| tl_thread_report {
                name: null(),
                took_ns: nanos_of(thread.took),
                outcome: match thread.outcome {
                    ThreadOutcome::Joined => tl_thread_outcome::TL_THREAD_JOINED,
                    ThreadOutcome::TimedOut => tl_thread_outcome::TL_THREAD_TIMED_OUT,
                    ThreadOutcome::Current => tl_thread_outcome::TL_THREAD_CURRENT,
                    ThreadOutcome::Detached => tl_thread_outcome::TL_THREAD_DETACHED,
                    _ => tl_thread_outcome::TL_THREAD_OTHER,
                },
            })
            .collect();
        let view = tl_stop_report {
            size: size_of::<tl_stop_report>(),
            text: null(),
            took_ns: nanos_of(report.took()),
            threads: null(),
            thread_count: rows.len(),
            is_clean: report.is_clean(),
        };
        let mut full =
            Box::new(FullReport { view, magic: AtomicU64::new(REPORT), text, names, rows });
        let FullReport { view, text, names, rows, .. } = &mut *full;
        view.text = text.as_ptr();
        for (row, name) in rows.iter_mut().zip(names) {
            row.name = name.as_ptr();
        }
        view.threads = rows.as_ptr();
        // SAFETY: it is a place for a pointer. The pointer is to all of it, as for errors.
        unsafe { place.write(Box::into_raw(full).cast()) };
    }
    if report.is_clean() { tl_status::TL_OK } else { tl_status::TL_LATE }
}
