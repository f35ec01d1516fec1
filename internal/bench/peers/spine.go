package main

import "fmt"

// spineConcurrency is how many deliveries Spine makes at once. As with River's workers, more are
// better here up to a point. This did best of 64, 128, 256 and 500.
const spineConcurrency = 256

// spineSystem is Spine's own binary. All settings are its defaults except the time and the number
// of deliveries.
func spineSystem() system {
	return system{
		name: "spine",
		processes: func(l layout) []program {
			switch l {
			case together:
				return []program{{name: "serve", front: true}}
			case apart:
				return []program{{name: "api", front: true}, {name: "worker"}}
			case threeEach:
				var all []program
				for range 3 {
					all = append(all, program{name: "api", front: true}, program{name: "worker"})
				}
				return all
			}
			return nil
		},
		// Nothing that a run sends waits for as long as a day.
		unfinished: `select count(*) from processing_state
			where status in ('pending', 'failed', 'processing') and next_attempt_at < now() + interval '1 day'`,
		settings: fmt.Sprintf("full audit; its defaults (GOGC=400 among them, where the others have Go's 100) except "+
			"DELIVERY_TIMEOUT=%v, DELIVERY_CONCURRENCY=%d and LOG_LEVEL=WARN", deliveryTimeout, spineConcurrency),
	}
}
