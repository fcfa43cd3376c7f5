use coracle_arch::x86_64::input_file::FileRole;
use vmm_sys_util::tempfile::TempFile;

use super::*;

/// An ELF file with one segment, a symbol table and a string table.
struct Sample {
    symbols: Vec<(&'static str, u8, u16, u64, u64)>,
}

const SEGMENT: (u64, u64, u64) = (0x100_0000, 0xffff_ffff_8100_0000, 0x10_0000);

impl Sample {
    fn kernel() -> Sample {
        Sample {
            symbols: vec![
                ("start_kernel", STT_FUNC, 1, 0xffff_ffff_8100_1000, 0x400),
                ("startup_64", STT_NOTYPE, 1, 0xffff_ffff_8100_0000, 0),
                ("_text", STT_NOTYPE, 1, 0xffff_ffff_8100_1000, 0),
                ("a_variable", 1, 2, 0xffff_ffff_8100_1100, 8),
                ("elsewhere", STT_FUNC, SHN_UNDEF, 0xffff_ffff_8100_1200, 8),
                ("absolute", STT_NOTYPE, 0xfff1, 0xffff_ffff_8100_1300, 8),
            ],
        }
    }

    fn bytes(&self) -> Vec<u8> {
        let mut names = vec![0];
        let mut table = vec![0; SYMBOL_LEN];
        for (name, kind, section, value, size) in &self.symbols {
            table.extend((names.len() as u32).to_le_bytes());
            table.extend([*kind, 0]);
            table.extend(section.to_le_bytes());
            table.extend(value.to_le_bytes());
            table.extend(size.to_le_bytes());
            names.extend(name.as_bytes());
            names.push(0);
        }
        let program_headers = HEADER_LEN as u64;
        let sections = program_headers + PROGRAM_HEADER_LEN as u64;
        let table_at = sections + 3 * SECTION_HEADER_LEN as u64;
        let names_at = table_at + table.len() as u64;

        let mut file = b"\x7fELF\x02\x01\x01".to_vec();
        file.resize(32, 0);
        file.extend([program_headers, sections].map(u64::to_le_bytes).concat());
        file.extend([0u16, 0, 64, 56, 1, 64, 3, 0].map(u16::to_le_bytes).concat());
        let (physical, linked, len) = SEGMENT;
        file.extend([PT_LOAD, 7].map(u32::to_le_bytes).concat());
        file.extend([0, linked, physical, len, len, 0].map(u64::to_le_bytes).concat());
        file.extend(section(0, 0, 0, 0));
        file.extend(section(SHT_SYMTAB, table_at, table.len() as u64, 2));
        file.extend(section(SHT_STRTAB, names_at, names.len() as u64, 0));
        file.extend(table);
        file.extend(names);
        file
    }
}

fn section(kind: u32, offset: u64, len: u64, link: u32) -> Vec<u8> {
    let mut header = [0, kind].map(u32::to_le_bytes).concat();
    header.extend([0, 0, offset, len].map(u64::to_le_bytes).concat());
    header.extend([link, 0].map(u32::to_le_bytes).concat());
    header.extend([0, SYMBOL_LEN as u64].map(u64::to_le_bytes).concat());
    header
}

fn file(bytes: &[u8]) -> (TempFile, SymbolFile) {
    let file = TempFile::new().unwrap();
    std::fs::write(file.as_path(), bytes).unwrap();
    let symbols = SymbolFile::of(&open(&file)).unwrap();
    (file, symbols)
}

fn open(file: &TempFile) -> InputFile {
    InputFile::open(FileRole::Kernel, file.as_path()).unwrap()
}

impl SymbolFile {
    fn function_at(&self, address: u64) -> Option<Function> {
        self.functions_at(&[address]).pop().flatten()
    }
}

fn name_at(address: u64) -> Option<String> {
    let (_file, symbols) = file(&Sample::kernel().bytes());
    symbols.function_at(address).map(|function| function.to_string())
}

#[test]
fn function_is_named_with_its_offset() {
    assert_eq!(name_at(0xffff_ffff_8100_1000).as_deref(), Some("start_kernel+0x0"));
    assert_eq!(name_at(0xffff_ffff_8100_13ff).as_deref(), Some("start_kernel+0x3ff"));
    assert_eq!(name_at(0xffff_ffff_8100_1400), None, "past its end");
    assert_eq!(name_at(0xffff_ffff_8100_0020).as_deref(), Some("startup_64+0x20"), "a label without a size");
}

#[test]
fn file_that_took_the_kernel_s_name_after_it_was_opened_has_no_functions() {
    let (kernel, other) = (TempFile::new().unwrap(), TempFile::new().unwrap());
    for file in [&kernel, &other] {
        std::fs::write(file.as_path(), Sample::kernel().bytes()).unwrap();
    }
    let opened = open(&kernel);
    std::fs::rename(other.as_path(), kernel.as_path()).unwrap();
    assert_eq!(SymbolFile::of(&opened).unwrap().function_at(0x100_1010), None);
    assert!(SymbolFile::of(&open(&kernel)).unwrap().function_at(0x100_1010).is_some());
}

#[test]
fn physical_address_of_early_code_is_named_too() {
    assert_eq!(name_at(0x100_1010).as_deref(), Some("start_kernel+0x10"));
    assert_eq!(name_at(0x110_0000), None, "past the segment");
    assert_eq!(name_at(0), None);
    assert_eq!(name_at(u64::MAX), None);
}

#[test]
fn several_addresses_are_looked_up_in_one_pass() {
    let (_file, symbols) = file(&Sample::kernel().bytes());
    let found = symbols.functions_at(&[0xffff_ffff_8100_1010, 0, 0x100_0004]);
    let names: Vec<_> = found.iter().map(|found| found.as_ref().map(Function::to_string)).collect();
    assert_eq!(names, [Some("start_kernel+0x10".into()), None, Some("startup_64+0x4".into())]);
}

#[test]
fn file_that_was_replaced_tells_nothing() {
    let (file, symbols) = file(&Sample::kernel().bytes());
    assert!(symbols.function_at(0xffff_ffff_8100_1000).is_some());
    let mut other = Sample::kernel();
    other.symbols.push(("wrong", STT_FUNC, 1, 0xffff_ffff_8100_1000, 0x400));
    std::fs::write(file.as_path(), other.bytes()).unwrap();
    assert_eq!(symbols.function_at(0xffff_ffff_8100_1000), None);
    std::fs::remove_file(file.as_path()).unwrap();
    assert_eq!(symbols.function_at(0xffff_ffff_8100_1000), None);
}

#[test]
fn hostile_names_are_shortened_and_cleaned() {
    let mut sample = Sample::kernel();
    let long: &'static str = Box::leak("n".repeat(1000).into_boxed_str());
    sample.symbols = vec![
        (long, STT_FUNC, 1, 0x1000, 16),
        ("\x1b[2Jred", STT_FUNC, 1, 0x2000, 16),
        ("", STT_FUNC, 1, 0x3000, 16),
    ];
    let (_file, symbols) = file(&sample.bytes());
    assert_eq!(symbols.function_at(0x1000).unwrap().name.len(), MAX_NAME_LEN);
    assert_eq!(symbols.function_at(0x2000).unwrap().name, "?[2Jred");
    assert_eq!(symbols.function_at(0x3000), None);
}

#[test]
fn damaged_files_give_no_name_and_no_panic() {
    let good = Sample::kernel().bytes();
    // An empty file is refused before, by `InputFile`.
    for length in 1..good.len() {
        let (_file, symbols) = file(&good[..length]);
        symbols.function_at(0xffff_ffff_8100_1000);
    }
    for offset in 0..good.len() {
        for value in [0x00, 0x7f, 0xff] {
            let mut bad = good.clone();
            bad[offset] = value;
            let (_file, symbols) = file(&bad);
            symbols.function_at(0xffff_ffff_8100_1000);
            symbols.function_at(0x100_1010);
        }
    }
}

#[test]
fn table_without_end_is_not_read() {
    let mut bytes = Sample::kernel().bytes();
    let len_of_table = HEADER_LEN + PROGRAM_HEADER_LEN + SECTION_HEADER_LEN + 32;
    bytes[len_of_table..len_of_table + 8].copy_from_slice(&(MAX_SYMBOLS_LEN + 24).to_le_bytes());
    let (_file, symbols) = file(&bytes);
    assert_eq!(symbols.function_at(0xffff_ffff_8100_1000), None);
}
