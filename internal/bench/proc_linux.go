package bench

const proc = procfs("/proc")
