//! The assembler's account of what each kernel takes, parsed from `--ptxas-options=-v`.
//!
//! ```text
//! ptxas info    : Compiling entry function 'mlstm_states' for 'sm_90a'
//! ptxas info    : Function properties for mlstm_states
//! ptxas         .     0 bytes stack frame, 0 bytes spill stores, 0 bytes spill loads
//! ptxas info    : Used 247 registers, used 1 barriers, 128 bytes smem
//! ```

use std::fmt;

/// What one kernel takes of a multiprocessor.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct KernelResources {
    /// Name of the kernel.
    pub name: String,
    /// 32-bit registers of a thread, at most 255.
    pub registers: u32,
    /// Bytes of static shared memory of a block; dynamic memory comes on top at launch.
    pub shared_bytes: u32,
    /// Bytes a thread writes to local memory for want of registers.
    pub spill_stores: u32,
    /// Bytes a thread reads back.
    pub spill_loads: u32,
}

impl fmt::Display for KernelResources {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(
            formatter,
            "{:<26} {:>3} registers {:>6} B static shared, spills {} B stored {} B loaded",
            self.name, self.registers, self.shared_bytes, self.spill_stores, self.spill_loads
        )
    }
}

/// The kernels of one compilation, sorted by name.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct ResourceReport {
    /// One entry for each kernel.
    pub kernels: Vec<KernelResources>,
}

impl ResourceReport {
    /// Reads a compilation log; lines of other kinds are passed over.
    #[must_use]
    pub fn parse(log: &str) -> Self {
        let mut kernels: Vec<KernelResources> = Vec::new();
        for line in log.lines() {
            if let Some(rest) = line.split("Compiling entry function '").nth(1) {
                let name = rest.split('\'').next().unwrap_or_default().to_owned();
                kernels.push(KernelResources { name, ..KernelResources::default() });
                continue;
            }
            let Some(kernel) = kernels.last_mut() else { continue };
            if let Some(registers) = number_before(line, " registers") {
                kernel.registers = registers;
                kernel.shared_bytes = number_before(line, " bytes smem").unwrap_or(0);
            } else if let Some(stores) = number_before(line, " bytes spill stores") {
                kernel.spill_stores = stores;
                kernel.spill_loads = number_before(line, " bytes spill loads").unwrap_or(0);
            }
        }
        kernels.sort_by(|a, b| a.name.cmp(&b.name));
        Self { kernels }
    }

    /// A report that knows no more than the kernels' names: of code that the driver will assemble.
    #[must_use]
    pub fn of_names(names: &[&str]) -> Self {
        let named = |name: &&str| KernelResources { name: (*name).to_owned(), ..KernelResources::default() };
        Self { kernels: names.iter().map(named).collect() }
    }

    /// The report as text, one kernel a line; [`ResourceReport::from_text`] reads it back.
    #[must_use]
    pub fn to_text(&self) -> String {
        self.kernels.iter().map(|kernel| format!("{kernel}\n")).collect()
    }

    /// Reads what [`ResourceReport::to_text`] wrote; `None` if a line is not of that form.
    #[must_use]
    pub fn from_text(text: &str) -> Option<Self> {
        let kernels = text.lines().map(parse_line).collect::<Option<Vec<_>>>()?;
        Some(Self { kernels })
    }
}

fn parse_line(line: &str) -> Option<KernelResources> {
    let words: Vec<&str> = line.split_whitespace().collect();
    let number = |index: usize| words.get(index)?.parse().ok();
    Some(KernelResources {
        name: (*words.first()?).to_owned(),
        registers: number(1)?,
        shared_bytes: number(3)?,
        spill_stores: number(8)?,
        spill_loads: number(11)?,
    })
}

fn number_before(line: &str, unit: &str) -> Option<u32> {
    let before = &line[..line.find(unit)?];
    before.rsplit(|character: char| !character.is_ascii_digit()).next()?.parse().ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    const LOG: &str = "ptxas info    : 0 bytes gmem\n\
        ptxas info    : Compiling entry function 'mlstm_states' for 'sm_90a'\n\
        ptxas info    : Function properties for mlstm_states\n\
        ptxas         .     8 bytes stack frame, 4 bytes spill stores, 12 bytes spill loads\n\
        ptxas info    : Used 247 registers, used 1 barriers, 8 bytes cumulative stack size, 128 bytes smem\n\
        ptxas info    : Compiling entry function 'gates' for 'sm_90a'\n\
        ptxas info    : Used 30 registers, used 1 barriers\n";

    #[test]
    fn a_log_is_read_kernel_by_kernel() {
        let report = ResourceReport::parse(LOG);
        let expected = KernelResources {
            name: "mlstm_states".into(),
            registers: 247,
            shared_bytes: 128,
            spill_stores: 4,
            spill_loads: 12,
        };
        assert_eq!(report.kernels[1], expected);
        assert_eq!((report.kernels[0].name.as_str(), report.kernels[0].registers), ("gates", 30));
    }

    #[test]
    fn text_and_back_is_the_same_report() {
        let report = ResourceReport::parse(LOG);
        assert_eq!(ResourceReport::from_text(&report.to_text()), Some(report));
        assert_eq!(ResourceReport::from_text("half a line"), None);
    }
}
