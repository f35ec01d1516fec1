package service

import (
	"cmp"
	"fmt"
	"io"
	"net/url"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/rs/zerolog"
	"golang.org/x/net/http/httpproxy"

	"github.com/webhookspine/spine/internal/observe"
	"github.com/webhookspine/spine/internal/secret"
)

// SettingError says which setting is wrong, and how.
type SettingError struct{ error }

// Unwrap returns what is wrong with the setting.
func (e SettingError) Unwrap() error { return e.error }

// settingError makes a SettingError as fmt.Errorf does.
func settingError(format string, args ...any) error {
	return SettingError{fmt.Errorf(format, args...)}
}

// Settings holds all settings, in groups. A subcommand binds the groups that concern it. The tags of a field make it an
// environment variable and a flag (DATABASE_URL, --database-url):
//
//	env         the variable
//	envDefault  what an unset or empty variable means
//	help        its line in --help
//	arg         what --help calls the value, if the type does not say it
//	min, max    the range, of numbers and durations
//	also        another spelling of the variable, which is read where the first is unset
//	secret      its value is never shown
//	empty       "rejected" where a variable that is set but empty is an error: taken as unset, it would let others in
//
// A rule for one field is its type's parser (see parsers). A rule for several fields is the group's check method.
type Settings struct {
	Log         LogSettings
	Database    DatabaseSettings
	Direct      DirectSettings
	Pool        PoolSettings
	Schema      SchemaSettings
	Upkeep      UpkeepSettings
	Listen      ListenSettings
	Server      ServerSettings
	Stop        StopSettings
	Intake      IntakeSettings
	Secrets     SecretSettings
	Admin       AdminSettings
	AdminListen AdminListenSettings
	Metrics     MetricsSettings
	Worker      WorkerSettings
	Destination DestinationSettings
	Retry       RetrySettings
	Mock        MockSettings
	Dev         DevSettings
}

// LogSettings say what is logged, and how.
type LogSettings struct {
	Level  LogLevel       `env:"LOG_LEVEL" envDefault:"INFO" arg:"LEVEL" help:"least level that is logged: trace, debug, info, warn, error"`
	Format observe.Format `env:"LOG_FORMAT" envDefault:"auto" arg:"FORMAT" help:"json, text, or auto: text on a terminal, else json"`
}

// Logger writes to w as the settings say.
func (l LogSettings) Logger(w io.Writer) zerolog.Logger {
	return observe.Logger(w, zerolog.Level(l.Level), l.Format)
}

// DatabaseSettings say where the database is.
type DatabaseSettings struct {
	URL PostgresURL `env:"DATABASE_URL" secret:"true" arg:"URL" help:"PostgreSQL, as postgres://user:password@host:5432/database"`
}

// DirectSettings say where the database is without a pooler.
type DirectSettings struct {
	URL PostgresURL `env:"DIRECT_DATABASE_URL" secret:"true" arg:"URL" help:"the database itself, for LISTEN and migrations, if DATABASE_URL is a pooler"`
}

// DirectURL is the URL for LISTEN and migrations.
func (s *Settings) DirectURL() string { return string(cmp.Or(s.Direct.URL, s.Database.URL)) }

// PoolSettings limit the connections of this process.
type PoolSettings struct {
	MaxConns int `env:"DB_MAX_CONNS" envDefault:"8" min:"1" max:"1000" help:"most database connections of this process; LISTEN has one more"`
}

// SchemaSettings say who migrates.
type SchemaSettings struct {
	Migrate bool `env:"MIGRATE" envDefault:"true" help:"bring the schema up to date at the start"`
}

// UpkeepSettings say how long data is kept.
type UpkeepSettings struct {
	Retention time.Duration `env:"RETENTION" envDefault:"0s" min:"0s" help:"keep finished events and the audit log so long, at least 1h; 0 keeps everything"`
}

// check makes retention long enough that every lease, retry and late result still finds its trail.
func (u *UpkeepSettings) check() error {
	if u.Retention > 0 && u.Retention < time.Hour {
		return settingError("RETENTION: must be 0 or at least 1h, got %q", u.Retention)
	}
	return nil
}

// ListenSettings say where to serve HTTP.
type ListenSettings struct {
	Address Address `env:"LISTEN" envDefault:":8000" arg:"HOST:PORT" help:"where to serve HTTP; without HOST on every interface, port 0 takes a free one"`
}

// ServerSettings say how to serve HTTP.
type ServerSettings struct {
	IdleTimeout time.Duration `env:"IDLE_TIMEOUT" envDefault:"11m" min:"1s" max:"24h" help:"how long a connection may idle; longer than the load balancer keeps its own"`
}

// StopSettings say how a process stops.
type StopSettings struct {
	Delay   time.Duration `env:"SHUTDOWN_DELAY" envDefault:"0s" min:"0s" help:"how long to go on serving after a stop signal, with /readyz at 503"`
	Timeout time.Duration `env:"SHUTDOWN_TIMEOUT" envDefault:"20s" min:"0s" help:"how long work in hand may then take before it is cut"`
}

// IntakeSettings limit the webhooks that are received.
type IntakeSettings struct {
	MaxBodyBytes     int64          `env:"MAX_BODY_BYTES" envDefault:"1048576" min:"1024" max:"104857600" help:"largest webhook body, in bytes, after decompression too"`
	MaxInFlightBytes int64          `env:"MAX_INFLIGHT_BYTES" envDefault:"268435456" min:"1048576" help:"limit on the bytes of all webhooks being read or waiting for their commit"`
	AddressRate      float64        `env:"ADDRESS_RATE" envDefault:"0" min:"0" help:"most requests a second from one client address (IPv6: 64 bits); 0 is no limit"`
	AddressBurst     int            `env:"ADDRESS_BURST" envDefault:"0" min:"0" max:"1000000" help:"most requests of one client address at once; 0 is a second's worth"`
	TrustedProxies   TrustedProxies `env:"TRUSTED_PROXIES" arg:"NETWORKS" help:"proxies whose X-Forwarded-For is believed, such as 10.0.0.0/8,192.0.2.1"`
	DefaultSource    DefaultSource  `env:"DEFAULT_SOURCE" envDefault:"closed" arg:"WORD" help:"open lets anyone send to the source default while it has no secret"`
}

// check makes room for one body of the largest size, compressed and decompressed.
func (i *IntakeSettings) check() error {
	if i.MaxInFlightBytes < 2*i.MaxBodyBytes {
		return settingError("MAX_INFLIGHT_BYTES: must be at least twice MAX_BODY_BYTES (%d), got %q",
			i.MaxBodyBytes, strconv.FormatInt(i.MaxInFlightBytes, 10))
	}
	return nil
}

// SecretSettings say which secrets the settings of sources may name.
type SecretSettings struct {
	Env SecretPatterns `env:"SECRET_ENV" envDefault:"*_WEBHOOK_SECRET,*_SIGNING_SECRET,SPINE_SECRET_*" arg:"PATTERNS" help:"variables that sources may name as their secrets; none of Spine's own settings"`
	Dir SecretDir      `env:"SECRET_DIR" envDefault:"/run/secrets" arg:"FOLDER" help:"folder whose files sources may name as their secrets"`
}

// Resolver reads the secrets that may be named. lookup finds variables, as os.LookupEnv does.
func (s SecretSettings) Resolver(lookup func(name string) (value string, found bool)) *secret.Resolver {
	return secret.NewResolver(secret.Rules{
		Patterns: s.Env, Dir: string(s.Dir), Own: ownVariables(), Lookup: lookup,
	})
}

// ownVariables are patterns of the variables that Spine and its libraries read themselves.
func ownVariables() []string {
	own := []string{"PORT", "PG*", "*_PROXY", "SPINE_TEST_*"}
	for _, group := range Groups(new(Settings)) {
		for _, f := range Fields(group) {
			own = append(own, f.Name)
		}
	}
	return own
}

// AdminSettings say who may read and operate.
type AdminSettings struct {
	Tokens     Tokens     `env:"ADMIN_TOKEN" secret:"true" empty:"rejected" arg:"TOKENS" help:"token for the administration, 16 characters or more; several with commas"`
	ReadTokens Tokens     `env:"ADMIN_READ_TOKEN" secret:"true" empty:"rejected" arg:"TOKENS" help:"token that may only read, /metrics too; needs ADMIN_TOKEN; several with commas"`
	Auth       AdminAuth  `env:"ADMIN_AUTH" arg:"none" help:"none opens the administration to everyone who reaches it"`
	Names      AdminNames `env:"ADMIN_NAMES" arg:"NAMES" help:"further host names for browsers where ADMIN_AUTH=none, with commas"`
}

func (a *AdminSettings) check() error {
	if len(a.Tokens) > 0 && a.Auth != "" {
		return settingError("ADMIN_AUTH: must be unset if ADMIN_TOKEN is set, got %q", a.Auth)
	}
	if len(a.ReadTokens) > 0 && len(a.Tokens) == 0 {
		return settingError("ADMIN_READ_TOKEN: needs ADMIN_TOKEN, which is not set")
	}
	for _, token := range a.ReadTokens {
		if slices.ContainsFunc(a.Tokens, token.Equal) {
			return settingError("ADMIN_READ_TOKEN: must differ from ADMIN_TOKEN")
		}
	}
	return nil
}

// AdminListenSettings say where to serve the administration.
type AdminListenSettings struct {
	Address AdminAddress `env:"ADMIN_LISTEN" envDefault:"127.0.0.1:8003" arg:"HOST:PORT" help:"where to serve /api, /dashboard and /metrics; same is the address of LISTEN"`
}

// MetricsSettings say where else to serve metrics.
type MetricsSettings struct {
	Address Address `env:"METRICS_LISTEN" arg:"HOST:PORT" help:"where to serve /metrics too, to everyone who reaches it"`
}

// WorkerSettings say how a worker claims.
type WorkerSettings struct {
	Concurrency int           `env:"DELIVERY_CONCURRENCY" envDefault:"64" min:"1" max:"10000" help:"most deliveries at once in this process"`
	Lease       time.Duration `env:"LEASE_DURATION" envDefault:"15s" min:"1s" max:"24h" help:"how long a claim lasts unless renewed; then another worker may claim the event"`
}

// DestinationSettings say where events are delivered.
type DestinationSettings struct {
	URL     DestinationURL `env:"DESTINATION_URL" secret:"true" arg:"URL" help:"where events go, or none to only store; unset: MOCK_API_URL/third_party/mock"`
	MockURL HTTPURL        `env:"MOCK_API_URL" secret:"true" arg:"URL" help:"base address of a mock API, the destination if DESTINATION_URL is unset"`
	Secret  secret.Value   `env:"DESTINATION_SECRET" secret:"true" empty:"rejected" arg:"SECRET" help:"signs deliveries as Standard Webhooks says (whsec_ and base64); unset: unsigned"`
	Timeout time.Duration  `env:"DELIVERY_TIMEOUT" envDefault:"10s" min:"1ms" max:"24h" help:"limit on one delivery attempt"`

	HTTPSProxy ProxyURL `env:"HTTPS_PROXY" also:"https_proxy" secret:"true" arg:"URL" help:"proxy on the way to an https destination: http, https or socks5"`
	HTTPProxy  ProxyURL `env:"HTTP_PROXY" also:"http_proxy" secret:"true" arg:"URL" help:"proxy on the way to an http destination: http, https or socks5"`
	NoProxy    string   `env:"NO_PROXY" also:"no_proxy" arg:"HOSTS" help:"destinations without a proxy, such as .internal,10.0.0.0/8; * for all"`
}

// proxy is the proxy on the way to a destination. It is nil where there is none.
func (d DestinationSettings) proxy(destination string) (*url.URL, error) {
	to, err := url.Parse(destination)
	if err != nil {
		return nil, settingError("DESTINATION_URL: must be an absolute http or https URL")
	}
	proxies := httpproxy.Config{HTTPProxy: string(d.HTTPProxy), HTTPSProxy: string(d.HTTPSProxy), NoProxy: d.NoProxy}
	return proxies.ProxyFunc()(to) //nolint:wrapcheck // fails only under CGI
}

// resolve is where events are delivered. It is empty if they are only stored.
func (d DestinationSettings) resolve() (string, error) {
	switch {
	case d.URL == "none":
		return "", nil
	case d.URL != "":
		return string(d.URL), nil
	case d.MockURL != "":
		return strings.TrimRight(string(d.MockURL), "/") + "/third_party/mock", nil
	}
	return "", settingError("DESTINATION_URL: must be set to where events go, or to none (or set MOCK_API_URL)")
}

// RetrySettings say how often and when a delivery is tried again.
type RetrySettings struct {
	MaxAttempts  int           `env:"MAX_RETRY_ATTEMPTS" envDefault:"5" min:"1" max:"1000" help:"most attempts at one delivery, the first included"`
	InitialDelay time.Duration `env:"INITIAL_RETRY_DELAY" envDefault:"1" min:"0s" help:"delay after the first failed attempt; it doubles after each further one"`
	MaxDelay     time.Duration `env:"MAX_RETRY_DELAY" envDefault:"60" min:"0s" help:"where the doubling ends"`

	CountUnreached bool `env:"COUNT_UNREACHED" envDefault:"false" help:"count attempts that did not reach the destination (DNS, refused, TLS), too"`
}

func (r *RetrySettings) check() error {
	if r.InitialDelay > r.MaxDelay {
		return settingError("INITIAL_RETRY_DELAY: must not be above MAX_RETRY_DELAY (%s), got %q",
			r.MaxDelay, r.InitialDelay)
	}
	return nil
}

// MockSettings say how the mock API fails.
type MockSettings struct {
	FailureRate float64       `env:"MOCK_API_FAILURE_RATE" envDefault:"0.5" min:"0" max:"1" help:"share of deliveries that the mock API fails on purpose, 0 to 1"`
	Status      int           `env:"MOCK_API_STATUS" envDefault:"0" min:"0" max:"599" help:"fail with this status; 0 means 500, 502 or 503 in turn"`
	Delay       time.Duration `env:"MOCK_API_DELAY" envDefault:"0s" min:"0s" max:"5m" help:"wait this long before every answer"`
	Hang        bool          `env:"MOCK_API_HANG" envDefault:"false" help:"fail by not answering at all"`
	Cut         string        `env:"MOCK_API_CUT" arg:"WHERE" help:"fail by cutting the connection: true, before the answer; body, within it"`
	RetryAfter  string        `env:"MOCK_API_RETRY_AFTER" arg:"WHEN" help:"Retry-After of each failure: seconds, an HTTP date, or a duration until a date"`
}

// DevSettings are those of spine dev alone.
type DevSettings struct {
	MockListen  Address `env:"MOCK_LISTEN" envDefault:"127.0.0.1:8001" arg:"HOST:PORT" help:"where the mock API serves"`
	PostgresBin string  `env:"POSTGRES_BIN" arg:"FOLDER" help:"folder of the PostgreSQL server to use; unset: one found here or downloaded"`
}

// ownSecrets are the credentials in the settings. Somebody may send one to a source by mistake.
func (s *Settings) ownSecrets() []secret.Value {
	own := slices.Concat(s.Admin.Tokens, s.Admin.ReadTokens, []secret.Value{s.Destination.Secret})
	for _, address := range []string{
		string(s.Database.URL), string(s.Direct.URL), string(s.Destination.URL),
		string(s.Destination.HTTPSProxy), string(s.Destination.HTTPProxy),
	} {
		if u, err := url.Parse(address); err == nil {
			if password, ok := u.User.Password(); ok {
				own = append(own, secret.New(password))
			}
		}
	}
	return own
}
