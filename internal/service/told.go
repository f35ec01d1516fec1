package service

import (
	"fmt"
	"net/url"

	"github.com/webhookspine/spine/internal/store"
)

// sayStart says on one line what is on. It shows no secret: of the destination's address only the host.
func (s *Service) sayStart() {
	line := s.log.Info().Str("version", s.version).Str("listen", s.URL())
	if s.roles.Worker {
		line = line.Str("destination", hostOf(s.destination))
		if s.destination != "" {
			line = line.Bool("signed", !s.settings.Destination.Secret.IsZero())
		}
	}
	retention := "off: everything is kept"
	if kept := s.settings.Upkeep.Retention; kept > 0 {
		retention = kept.String()
	}
	line = line.Str("retention", retention)
	if s.roles.API {
		defaultSource := "closed until it has a secret"
		if s.settings.Intake.DefaultSource == "open" {
			defaultSource = "open: anyone may send while it has no secret"
		}
		line = line.Str("default_source", defaultSource)
	}
	what := "admin"
	if !s.roles.API {
		what = "metrics"
	}
	line = line.Str(what, s.adminURL).Str(what+"_auth", s.admin.access.String())
	if address := s.settings.Metrics.Address; address != "" {
		line = line.Str("metrics_listen", string(address))
	}
	line.Msg("starting")

	for _, remark := range store.Remarks(string(s.settings.Database.URL)) {
		s.log.Warn().Str("setting", "DATABASE_URL").Msg(remark)
	}
	for _, remark := range store.Remarks(string(s.settings.Direct.URL)) {
		s.log.Warn().Str("setting", "DIRECT_DATABASE_URL").Msg(remark)
	}
	if s.admin.access == byEveryone {
		s.log.Warn().Str("url", s.adminURL).
			Msg("ADMIN_AUTH=none: everyone who reaches this address may read and change everything")
	}
}

// hostOf is the host of the destination, or why there is none.
func hostOf(destination string) string {
	if destination == "" {
		return "none: events are stored and stay pending"
	}
	u, err := url.Parse(destination)
	if err != nil {
		return "unreadable" // cannot be: the setting was checked
	}
	return u.Host
}

// sayStopping says that the process was told to stop, and what it still has to do.
func (s *Service) sayStopping() {
	doing := "stopping"
	if s.worker != nil {
		n := s.worker.InHand()
		noun := "deliveries"
		if n == 1 {
			noun = "delivery"
		}
		doing = fmt.Sprintf("stopping: %d %s in hand", n, noun)
	}
	s.log.Info().Msg(doing)
}
