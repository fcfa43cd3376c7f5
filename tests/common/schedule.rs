//! The CPU time of the threads of this process, as the kernel counts it.

/// Returns the seconds for which the vCPUs of this process have run, and for which they have waited for a
/// CPU, as counted by the kernel (Linux, Documentation/scheduler/sched-stats.rst).
pub fn vcpu_times() -> [f64; 2] {
    let tasks = std::fs::read_dir("/proc/self/task").unwrap().map(|task| task.unwrap().path());
    let vcpus = tasks.filter(|task| {
        std::fs::read_to_string(task.join("comm")).is_ok_and(|name| name.starts_with("vcpu-"))
    });
    vcpus.fold([0.0; 2], |[used, waited], task| {
        let counts = std::fs::read_to_string(task.join("schedstat")).unwrap();
        let mut seconds = counts.split(' ').map(|count| count.parse::<f64>().unwrap() / 1e9);
        [used + seconds.next().unwrap(), waited + seconds.next().unwrap()]
    })
}
