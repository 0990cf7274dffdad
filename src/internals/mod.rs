//! The parts by themselves, for this project's own fuzz targets and benches. Promises nothing to
//! anyone else.

pub mod fuzz;
pub mod parts;
mod reading;
