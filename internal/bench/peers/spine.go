package main

import "fmt"

// spineSystem is Spine's own binary, with its default settings but for the
// time that a delivery may take.
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
		unfinished: "select count(*) from processing_state where status in ('pending', 'failed', 'processing') and next_attempt_at < now() + interval '1 day'",
		settings:   fmt.Sprintf("full audit, its defaults but for DELIVERY_TIMEOUT=%v and LOG_LEVEL=WARN", deliveryTimeout),
	}
}
