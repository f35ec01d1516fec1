package service

import (
	"cmp"
	"errors"
	"fmt"
	"io"
	"net"
	"net/netip"
	"net/url"
	"reflect"
	"strconv"
	"strings"
	"time"

	"github.com/caarlos0/env/v11"
	"github.com/jackc/pgx/v5/pgconn"
	"github.com/rs/zerolog"

	"github.com/webhookspine/spine/internal/observe"
	"github.com/webhookspine/spine/internal/source"
)

// SettingError is a fault of the call or its settings, not of what was done.
type SettingError struct{ error }

func (e SettingError) Unwrap() error { return e.error }

func settingError(format string, args ...any) error {
	return SettingError{fmt.Errorf(format, args...)}
}

// Settings holds everything that can be set, in groups; a subcommand binds the
// groups that concern it. Each field is an environment variable and a flag
// (DATABASE_URL, --database-url) by its tags alone:
//
//	env         the variable
//	envDefault  what an unset or empty variable means
//	help        its line in --help
//	arg         what --help calls the value, where the type does not say it
//	min, max    the range, of numbers and durations
//	secret      its value is never shown
//
// A rule that one field cannot say is its type's parser (see parsers) or, for
// several fields, the group's check method.
type Settings struct {
	Log         LogSettings
	Database    DatabaseSettings
	Direct      directSettings
	Pool        PoolSettings
	Schema      SchemaSettings
	Upkeep      upkeepSettings
	Listen      ListenSettings
	Stop        StopSettings
	Intake      IntakeSettings
	Admin       adminSettings
	Worker      WorkerSettings
	Destination DestinationSettings
	Retry       RetrySettings
	Mock        MockSettings
	Dev         DevSettings
}

type LogSettings struct {
	Level  LogLevel       `env:"LOG_LEVEL" envDefault:"INFO" arg:"LEVEL" help:"least level that is logged: trace, debug, info, warn, error"`
	Format observe.Format `env:"LOG_FORMAT" envDefault:"auto" arg:"FORMAT" help:"json, text, or auto: text on a terminal, else json"`
}

func (l LogSettings) Logger(w io.Writer) zerolog.Logger {
	return observe.Logger(w, zerolog.Level(l.Level), l.Format)
}

type DatabaseSettings struct {
	URL PostgresURL `env:"DATABASE_URL" secret:"true" arg:"URL" help:"PostgreSQL, as postgres://user:password@host:5432/database"`
}

type directSettings struct {
	URL PostgresURL `env:"DIRECT_DATABASE_URL" secret:"true" arg:"URL" help:"the database itself, for LISTEN and migrations, if DATABASE_URL is a pooler"`
}

// DirectURL is where LISTEN and migrations connect to.
func (s *Settings) DirectURL() string { return string(cmp.Or(s.Direct.URL, s.Database.URL)) }

type PoolSettings struct {
	MaxConns int `env:"DB_MAX_CONNS" envDefault:"8" min:"1" max:"1000" help:"most database connections of this process; LISTEN has one more"`
}

type SchemaSettings struct {
	Migrate bool `env:"MIGRATE" envDefault:"true" help:"bring the schema up to date at the start"`
}

type upkeepSettings struct {
	Retention time.Duration `env:"RETENTION" envDefault:"0s" min:"0s" help:"keep finished events and the audit log so long, at least 1h; 0 keeps everything"`
}

// check leaves every lease, retry and late result its trail.
func (u *upkeepSettings) check() error {
	if u.Retention > 0 && u.Retention < time.Hour {
		return settingError("RETENTION: must be 0 or at least 1h, got %q", u.Retention)
	}
	return nil
}

type ListenSettings struct {
	Address Address `env:"LISTEN" envDefault:":8000" arg:"HOST:PORT" help:"where to serve HTTP; without HOST on every interface, port 0 takes a free one"`
}

type StopSettings struct {
	Delay   time.Duration `env:"SHUTDOWN_DELAY" envDefault:"0s" min:"0s" help:"how long to go on serving after a stop signal, with /readyz at 503"`
	Timeout time.Duration `env:"SHUTDOWN_TIMEOUT" envDefault:"20s" min:"0s" help:"how long work in hand may then take before it is cut"`
}

type IntakeSettings struct {
	MaxBodyBytes     int64          `env:"MAX_BODY_BYTES" envDefault:"1048576" min:"1024" max:"104857600" help:"largest webhook body, in bytes, after decompression too"`
	MaxInFlightBytes int64          `env:"MAX_INFLIGHT_BYTES" envDefault:"268435456" min:"1048576" help:"limit on the bytes of all webhooks being read or waiting for their commit"`
	AddressRate      float64        `env:"ADDRESS_RATE" envDefault:"0" min:"0" help:"most requests a second from one client address (IPv6: 64 bits); 0 is no limit"`
	AddressBurst     int            `env:"ADDRESS_BURST" envDefault:"0" min:"0" max:"1000000" help:"most requests of one client address at once; 0 is a second's worth"`
	TrustedProxies   trustedProxies `env:"TRUSTED_PROXIES" arg:"NETWORKS" help:"proxies whose X-Forwarded-For is believed, such as 10.0.0.0/8,192.0.2.1"`
}

// check leaves room for one body of the largest size, and what it is compressed from.
func (i *IntakeSettings) check() error {
	if i.MaxInFlightBytes < 2*i.MaxBodyBytes {
		return settingError(
			"MAX_INFLIGHT_BYTES: must be at least twice MAX_BODY_BYTES (%d), got %q",
			i.MaxBodyBytes,
			strconv.FormatInt(i.MaxInFlightBytes, 10),
		)
	}
	return nil
}

type adminSettings struct {
	Token string    `env:"ADMIN_TOKEN" secret:"true" arg:"TOKEN" help:"token for /api and /dashboard; without one only this machine may use them"`
	Read  string    `env:"ADMIN_READ_TOKEN" secret:"true" arg:"TOKEN" help:"second token for /api and /dashboard that may only read; needs ADMIN_TOKEN"`
	Auth  adminAuth `env:"ADMIN_AUTH" arg:"none" help:"none opens /api and /dashboard to everyone who reaches them"`
}

func (a *adminSettings) check() error {
	if a.Token != "" && a.Auth != "" {
		return settingError("ADMIN_AUTH: must be unset where ADMIN_TOKEN is set, got %q", a.Auth)
	}
	if a.Read != "" && (a.Token == "" || a.Read == a.Token) {
		return settingError("ADMIN_READ_TOKEN: must be another one than ADMIN_TOKEN, which must be set as well")
	}
	return nil
}

type WorkerSettings struct {
	Concurrency int           `env:"DELIVERY_CONCURRENCY" envDefault:"64" min:"1" max:"10000" help:"most deliveries at once in this process"`
	Lease       time.Duration `env:"LEASE_DURATION" envDefault:"15s" min:"1s" max:"24h" help:"how long a claim lasts unless renewed; then another worker may claim the event"`
}

type DestinationSettings struct {
	URL     DestinationURL `env:"DESTINATION_URL" secret:"true" arg:"URL" help:"where events go, or none to only store; unset: MOCK_API_URL/third_party/mock"`
	MockURL HTTPURL        `env:"MOCK_API_URL" secret:"true" arg:"URL" help:"base address of a mock API, the destination if DESTINATION_URL is unset"`
	Secret  string         `env:"DESTINATION_SECRET" secret:"true" arg:"SECRET" help:"signs deliveries as Standard Webhooks says (whsec_ and base64); unset: unsigned"`
	Timeout time.Duration  `env:"DELIVERY_TIMEOUT" envDefault:"10s" min:"1ms" max:"24h" help:"limit on one delivery attempt"`
}

// resolve says where events are delivered; it is empty where they are only
// stored.
func (d DestinationSettings) resolve() (string, error) {
	switch {
	case d.URL == "none":
		return "", nil
	case d.URL != "":
		return string(d.URL), nil
	case d.MockURL != "":
		return strings.TrimRight(string(d.MockURL), "/") + "/third_party/mock", nil
	}
	return "", settingError(
		"DESTINATION_URL: must be set to where events are delivered, or to none (or set MOCK_API_URL)",
	)
}

type RetrySettings struct {
	MaxAttempts  int           `env:"MAX_RETRY_ATTEMPTS" envDefault:"5" min:"1" max:"1000" help:"most attempts at one delivery, the first included"`
	InitialDelay time.Duration `env:"INITIAL_RETRY_DELAY" envDefault:"1" min:"0s" help:"delay after the first failed attempt; it doubles after each further one"`
	MaxDelay     time.Duration `env:"MAX_RETRY_DELAY" envDefault:"60" min:"0s" help:"where the doubling ends"`
}

func (r *RetrySettings) check() error {
	if r.InitialDelay > r.MaxDelay {
		return settingError(
			"INITIAL_RETRY_DELAY: must not be above MAX_RETRY_DELAY (%s), got %q",
			r.MaxDelay,
			r.InitialDelay,
		)
	}
	return nil
}

type MockSettings struct {
	FailureRate float64       `env:"MOCK_API_FAILURE_RATE" envDefault:"0.5" min:"0" max:"1" help:"share of deliveries that the mock API fails on purpose, 0 to 1"`
	Status      int           `env:"MOCK_API_STATUS" envDefault:"0" min:"0" max:"599" help:"fail with this status; 0 means 500, 502 or 503 in turn"`
	Delay       time.Duration `env:"MOCK_API_DELAY" envDefault:"0s" min:"0s" max:"5m" help:"wait this long before every answer"`
	Hang        bool          `env:"MOCK_API_HANG" envDefault:"false" help:"fail by not answering at all"`
	Cut         string        `env:"MOCK_API_CUT" arg:"WHERE" help:"fail by cutting the connection: true, before the answer; body, within it"`
	RetryAfter  string        `env:"MOCK_API_RETRY_AFTER" arg:"WHEN" help:"Retry-After of each failure: seconds, an HTTP date, or a duration until a date"`
}

type DevSettings struct {
	MockListen  Address `env:"MOCK_LISTEN" envDefault:"127.0.0.1:8001" arg:"HOST:PORT" help:"where the mock API serves"`
	PostgresBin string  `env:"POSTGRES_BIN" arg:"FOLDER" help:"folder of the PostgreSQL server to use; unset: one found here or downloaded"`
}

// Types whose values have a form of their own.
type (
	LogLevel       zerolog.Level
	Address        string // HOST:PORT, HOST may be empty
	HTTPURL        string // absolute, http or https
	DestinationURL string // an HTTPURL, or "none"
	PostgresURL    string // what pgx can connect to; may hold a password
	adminAuth      string // "" or "none"
	trustedProxies []netip.Prefix
)

// parsers read the text of a setting by its type. Their errors say what the
// text must be and never quote it.
func parsers() map[reflect.Type]env.ParserFunc {
	return map[reflect.Type]env.ParserFunc{
		reflect.TypeFor[time.Duration](): func(s string) (any, error) { return ParseDuration(s) },
		reflect.TypeFor[int]():           must("be a whole number", strconv.Atoi),
		reflect.TypeFor[int64](): must(
			"be a whole number",
			func(s string) (int64, error) { return strconv.ParseInt(s, 10, 64) },
		),
		reflect.TypeFor[float64](): must(
			"be a number",
			func(s string) (float64, error) { return strconv.ParseFloat(s, 64) },
		),
		reflect.TypeFor[bool](): must("be true or false", strconv.ParseBool),
		reflect.TypeFor[LogLevel](): must(
			"be trace, debug, info, warn, error, fatal, panic or disabled",
			func(s string) (LogLevel, error) {
				level, err := zerolog.ParseLevel(s)
				return LogLevel(level), err
			},
		),
		reflect.TypeFor[observe.Format](): must("be auto, json or text", observe.ParseFormat),
		reflect.TypeFor[Address](): must(
			"be HOST:PORT, such as 127.0.0.1:8000 or :8000",
			func(s string) (Address, error) {
				_, port, err := net.SplitHostPort(s)
				if err == nil {
					_, err = strconv.ParseUint(port, 10, 16)
				}
				return Address(s), err
			},
		),
		reflect.TypeFor[HTTPURL](): must("be an absolute http or https URL", func(s string) (HTTPURL, error) {
			return HTTPURL(s), checkHTTP(s)
		}),
		reflect.TypeFor[DestinationURL](): must(
			"be an absolute http or https URL, or none",
			func(s string) (DestinationURL, error) {
				if s == "none" {
					return "none", nil
				}
				return DestinationURL(s), checkHTTP(s)
			},
		),
		reflect.TypeFor[PostgresURL](): must(
			"be a PostgreSQL connection string, such as postgres://user:password@host:5432/database",
			func(s string) (PostgresURL, error) {
				_, err := pgconn.ParseConfig(s)
				return PostgresURL(s), err
			},
		),
		reflect.TypeFor[trustedProxies](): must(
			"be networks or addresses, such as 10.0.0.0/8,192.0.2.1",
			parseNetworks,
		),
		reflect.TypeFor[adminAuth](): must("be none or unset", func(s string) (adminAuth, error) {
			if s != "none" {
				return "", errUnreadable
			}
			return "none", nil
		}),
	}
}

// parseNetworks reads networks and addresses between commas.
func parseNetworks(text string) (trustedProxies, error) {
	var networks trustedProxies
	for part := range strings.SplitSeq(text, ",") {
		part = strings.TrimSpace(part)
		network, err := netip.ParsePrefix(part)
		if err != nil {
			address, err := netip.ParseAddr(part)
			if err != nil {
				return nil, err
			}
			address = address.Unmap()
			network = netip.PrefixFrom(address, address.BitLen())
		}
		networks = append(networks, network.Masked())
	}
	return networks, nil
}

// errUnreadable is for parsers whose caller says what is wrong.
var errUnreadable = errors.New("unreadable")

// must wraps a parser so that its error is the phrase alone: a parser's own
// error may quote a secret.
func must[T any](phrase string, parse func(string) (T, error)) env.ParserFunc {
	return func(s string) (any, error) {
		v, err := parse(s)
		if err != nil {
			return nil, errors.New("must " + phrase)
		}
		return v, nil
	}
}

// ParseDuration reads a number of seconds (30, 0.5), Go's form (500ms), or a number of days of 24 hours each (30d). The
// settings of a source have the same form.
func ParseDuration(s string) (time.Duration, error) { return source.ParseDuration(s) }

func checkHTTP(s string) error {
	u, err := url.Parse(s)
	if err != nil {
		return err
	}
	if u.Scheme != "http" && u.Scheme != "https" || u.Hostname() == "" {
		return errUnreadable
	}
	return nil
}

// Read fills a group from texts and returns the first problem as a misuse that
// names the setting.
func Read(group any, texts map[string]string) error {
	err := env.ParseWithOptions(group, env.Options{Environment: texts, FuncMap: parsers()})
	failed := make(map[string]error)
	if all, ok := errors.AsType[env.AggregateError](err); ok {
		for _, one := range all.Errors {
			bad, ok := errors.AsType[env.ParseError](one)
			if !ok {
				return fmt.Errorf("reading settings: %w", one)
			}
			failed[bad.Name] = bad.Err
		}
	} else if err != nil {
		return fmt.Errorf("reading settings: %w", err)
	}
	for i, f := range Fields(group) {
		problem := failed[f.goName]
		if problem == nil {
			problem = f.inRange(reflect.ValueOf(group).Elem().Field(i))
		}
		switch {
		case problem == nil:
		case f.secret:
			return settingError("%s: %w", f.Name, problem)
		default:
			return settingError("%s: %w, got %q", f.Name, problem, texts[f.Name])
		}
	}
	if c, ok := group.(interface{ check() error }); ok {
		return c.check()
	}
	return nil
}

// Field is one setting as its tags describe it.
type Field struct {
	goName, Name, Flag, Help, Default, Placeholder string
	min, max                                       string
	Kind                                           reflect.Kind
	secret                                         bool
}

// Fields describes the settings of a group, given a pointer to it.
func Fields(group any) []Field {
	t := reflect.TypeOf(group).Elem()
	fields := make([]Field, t.NumField())
	for i := range fields {
		f := t.Field(i)
		name := f.Tag.Get("env")
		fields[i] = Field{
			goName: f.Name, Name: name, Flag: strings.TrimPrefix(FlagName(name), "--"),
			Help: f.Tag.Get("help"), Default: f.Tag.Get("envDefault"), Placeholder: placeholder(f),
			min: f.Tag.Get("min"), max: f.Tag.Get("max"),
			Kind: f.Type.Kind(), secret: f.Tag.Get("secret") != "",
		}
	}
	return fields
}

func FlagName(variable string) string {
	return "--" + strings.ReplaceAll(strings.ToLower(variable), "_", "-")
}

func placeholder(f reflect.StructField) string {
	if arg := f.Tag.Get("arg"); arg != "" {
		return arg
	}
	switch {
	case f.Type == reflect.TypeFor[time.Duration]():
		return "DURATION"
	case f.Type.Kind() == reflect.Bool:
		return ""
	default:
		return "NUMBER"
	}
}

// inRange checks a number or duration against the field's min and max.
func (f Field) inRange(v reflect.Value) error {
	number := func(text string) float64 { n, _ := strconv.ParseFloat(text, 64); return n }
	if v.Type() == reflect.TypeFor[time.Duration]() {
		number = func(text string) float64 { d, _ := ParseDuration(text); return float64(d) }
	}
	var n float64
	switch {
	case f.min == "":
		return nil
	case v.CanInt():
		n = float64(v.Int())
	default:
		n = v.Float()
	}
	switch {
	case f.max == "" && !(n >= number(f.min)):
		return fmt.Errorf("must be at least %s", f.min)
	case f.max != "" && !(n >= number(f.min) && n <= number(f.max)):
		return fmt.Errorf("must be %s to %s", f.min, f.max)
	}
	return nil
}

// Groups are all groups of s.
func Groups(s *Settings) []any {
	v := reflect.ValueOf(s).Elem()
	all := make([]any, v.NumField())
	for i := range all {
		all[i] = v.Field(i).Addr().Interface()
	}
	return all
}
