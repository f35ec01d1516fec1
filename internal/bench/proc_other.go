//go:build !linux

package bench

const proc = procfs("")
