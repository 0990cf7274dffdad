//! The parts by themselves, for this project's own fuzz targets and benches. Promises nothing to
//! anyone else.

pub mod fuzz;
mod oracle;
pub mod parts;
mod reading;
