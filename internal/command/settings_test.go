package command

import (
	"encoding/json"
	"fmt"
	"strings"
	"testing"
	"time"

	"github.com/rs/zerolog"
	"github.com/spf13/cobra"
	"github.com/stretchr/testify/require"

	"github.com/webhookspine/spine/internal/observe"
	"github.com/webhookspine/spine/internal/secret"
	"github.com/webhookspine/spine/internal/service"
)

// parse reads all settings as a subcommand does.
func parse(environment []string, n needs, args ...string) (service.Settings, error) {
	var s service.Settings
	n.groups = service.Groups(&s)
	cmd := &cobra.Command{
		RunE:          func(*cobra.Command, []string) error { return nil },
		SilenceErrors: true,
		SilenceUsage:  true,
	}
	newEnviron(environment).bind(cmd, n)
	cmd.SetArgs(args)
	return s, cmd.Execute()
}

func badToken(name string) string {
	return name + ": must have 16 characters or more, as must each of several with commas between"
}

func TestSettingsThatMakeNoSense(t *testing.T) {
	for _, tc := range []struct{ setting, want string }{
		{"MAX_RETRY_ATTEMPTS=0", `MAX_RETRY_ATTEMPTS: must be 1 to 1000, got "0"`},
		{"MAX_RETRY_ATTEMPTS=1001", `MAX_RETRY_ATTEMPTS: must be 1 to 1000, got "1001"`},
		{"MAX_RETRY_ATTEMPTS=five", `MAX_RETRY_ATTEMPTS: must be a whole number, got "five"`},
		{"MAX_RETRY_ATTEMPTS=1.5", `MAX_RETRY_ATTEMPTS: must be a whole number, got "1.5"`},
		{"MAX_RETRY_ATTEMPTS=99999999999999999999", `MAX_RETRY_ATTEMPTS: must be a whole number, got "99999999999999999999"`},
		{"MOCK_API_FAILURE_RATE=1.1", `MOCK_API_FAILURE_RATE: must be 0 to 1, got "1.1"`},
		{"MOCK_API_FAILURE_RATE=-0.1", `MOCK_API_FAILURE_RATE: must be 0 to 1, got "-0.1"`},
		{"MOCK_API_FAILURE_RATE=NaN", `MOCK_API_FAILURE_RATE: must be 0 to 1, got "NaN"`},
		{"MOCK_API_FAILURE_RATE=half", `MOCK_API_FAILURE_RATE: must be a number, got "half"`},
		{"INITIAL_RETRY_DELAY=-1", `INITIAL_RETRY_DELAY: must be at least 0s, got "-1"`},
		{"INITIAL_RETRY_DELAY=61", `INITIAL_RETRY_DELAY: must not be above MAX_RETRY_DELAY (1m0s), got "1m1s"`},
		{"MAX_RETRY_DELAY=soon", `MAX_RETRY_DELAY: must be a duration, in seconds or such as 500ms or 30d, got "soon"`},
		{"MAX_RETRY_DELAY=Inf", `MAX_RETRY_DELAY: must be a duration, in seconds or such as 500ms or 30d, got "Inf"`},
		{"MAX_RETRY_DELAY=1e300", `MAX_RETRY_DELAY: must be a duration, in seconds or such as 500ms or 30d, got "1e300"`},
		{"RETENTION=-1h", `RETENTION: must be at least 0s, got "-1h"`},
		{"RETENTION=59m", `RETENTION: must be 0 or at least 1h, got "59m0s"`},
		{"RETENTION=month", `RETENTION: must be a duration, in seconds or such as 500ms or 30d, got "month"`},
		{"LEASE_DURATION=0.9", `LEASE_DURATION: must be 1s to 24h, got "0.9"`},
		{"DELIVERY_CONCURRENCY=0", `DELIVERY_CONCURRENCY: must be 1 to 10000, got "0"`},
		{"DELIVERY_TIMEOUT=0", `DELIVERY_TIMEOUT: must be 1ms to 24h, got "0"`},
		{"DB_MAX_CONNS=0", `DB_MAX_CONNS: must be 1 to 1000, got "0"`},
		{"MAX_BODY_BYTES=1MB", `MAX_BODY_BYTES: must be a whole number, got "1MB"`},
		{"SHUTDOWN_DELAY=-1s", `SHUTDOWN_DELAY: must be at least 0s, got "-1s"`},
		{"LOG_LEVEL=LOUD", `LOG_LEVEL: must be trace, debug, info, warn, error, fatal, panic or disabled, got "LOUD"`},
		{"LOG_FORMAT=xml", `LOG_FORMAT: must be auto, json or text, got "xml"`},
		{"LISTEN=8000", `LISTEN: must be HOST:PORT, such as 127.0.0.1:8000 or :8000, got "8000"`},
		{"LISTEN=:http", `LISTEN: must be HOST:PORT, such as 127.0.0.1:8000 or :8000, got ":http"`},
		{"LISTEN=:65536", `LISTEN: must be HOST:PORT, such as 127.0.0.1:8000 or :8000, got ":65536"`},
		{"ADMIN_AUTH=basic", `ADMIN_AUTH: must be none or unset, got "basic"`},
		{"ADMIN_AUTH=local", `ADMIN_AUTH: must be none or unset, got "local"`},
		{"ADMIN_LISTEN=8003", `ADMIN_LISTEN: must be HOST:PORT, such as 127.0.0.1:8003, or same, got "8003"`},
		{"METRICS_LISTEN=same", `METRICS_LISTEN: must be HOST:PORT, such as 127.0.0.1:8000 or :8000, got "same"`},
		{"DEFAULT_SOURCE=yes", `DEFAULT_SOURCE: must be open or closed, got "yes"`},
		{
			"SECRET_ENV=A B",
			`SECRET_ENV: must be names of variables, in which * stands for any text, separated by commas, got "A B"`,
		},
		{
			"SECRET_ENV=A,,B",
			`SECRET_ENV: must be names of variables, in which * stands for any text, separated by commas, got "A,,B"`,
		},
		{"SECRET_DIR=/", `SECRET_DIR: must be a folder of secrets, and neither / nor in /proc, /sys or /dev, got "/"`},
		{
			"SECRET_DIR=/proc/self",
			`SECRET_DIR: must be a folder of secrets, and neither / nor in /proc, /sys or /dev, got "/proc/self"`,
		},
		{"MIGRATE=perhaps", `MIGRATE: must be true or false, got "perhaps"`},
		// Secret, or an address that may hold one: not shown. A5: an empty token is no token that is unset.
		{"ADMIN_TOKEN=", `ADMIN_TOKEN: must not be empty: give it a value, or unset it`},
		{"ADMIN_READ_TOKEN=", `ADMIN_READ_TOKEN: must not be empty: give it a value, or unset it`},
		{"DESTINATION_SECRET=", `DESTINATION_SECRET: must not be empty: give it a value, or unset it`},
		{"ADMIN_TOKEN=x", badToken("ADMIN_TOKEN")},
		{"ADMIN_TOKEN=15-characters--", badToken("ADMIN_TOKEN")},
		{"ADMIN_TOKEN=                    ", badToken("ADMIN_TOKEN")},
		{"ADMIN_TOKEN=fifteen-and-one-,sesame", badToken("ADMIN_TOKEN")},
		{"ADMIN_TOKEN=fifteen-and-one-,", badToken("ADMIN_TOKEN")},
		{"ADMIN_TOKEN=fifteen\tand-one-", badToken("ADMIN_TOKEN")},
		{"ADMIN_READ_TOKEN=sesame", badToken("ADMIN_READ_TOKEN")},
		{"DESTINATION_URL=sesame", `DESTINATION_URL: must be an absolute http or https URL, or none`},
		{"DESTINATION_URL=ftp://sesame@a", `DESTINATION_URL: must be an absolute http or https URL, or none`},
		{"DESTINATION_URL=https:///sesame", `DESTINATION_URL: must be an absolute http or https URL, or none`},
		{"DESTINATION_URL=http://u:sesame@a:b/", `DESTINATION_URL: must be an absolute http or https URL, or none`},
		{"MOCK_API_URL=none", `MOCK_API_URL: must be an absolute http or https URL`},
		{
			"DATABASE_URL=postgres://u:sesame@db:what/x",
			`DATABASE_URL: must be a PostgreSQL connection string, such as postgres://user:password@host:5432/database`,
		},
		{
			"DATABASE_URL=postgres://u:sesame@db/x?default_query_exec_mode=exec",
			`DATABASE_URL: default_query_exec_mode may be cache_statement, cache_describe, describe_exec, not exec`,
		},
		{
			"DATABASE_URL=postgres://u:sesame@db/x?keepalives_idle=soon",
			`DATABASE_URL: keepalives_idle must be a whole number, got "soon"`,
		},
		{
			"DIRECT_DATABASE_URL=sesame",
			`DIRECT_DATABASE_URL: must be a PostgreSQL connection string, such as postgres://user:password@host:5432/database`,
		},
	} {
		t.Run(tc.setting, func(t *testing.T) {
			name, text, _ := strings.Cut(tc.setting, "=")
			_, err := parse([]string{tc.setting}, needs{})
			require.EqualError(t, err, tc.want)
			require.NotContains(t, err.Error(), "sesame")
			require.ErrorAs(t, err, new(service.SettingError))

			_, err = parse(nil, needs{}, service.FlagName(name)+"="+text)
			require.EqualError(t, err, tc.want, "as a flag")
		})
	}
}

func TestSettingsThatContradict(t *testing.T) {
	_, err := parse([]string{"ADMIN_AUTH=none", "ADMIN_TOKEN=open-sesame-open"}, needs{})
	require.EqualError(t, err, `ADMIN_AUTH: must be unset if ADMIN_TOKEN is set, got "none"`)
	_, err = parse([]string{"ADMIN_READ_TOKEN=open-sesame-open"}, needs{})
	require.EqualError(t, err, "ADMIN_READ_TOKEN: needs ADMIN_TOKEN, which is not set")
	_, err = parse(
		[]string{"ADMIN_TOKEN=open-sesame-open,open-barley-open", "ADMIN_READ_TOKEN=open-barley-open"},
		needs{},
	)
	require.EqualError(t, err, "ADMIN_READ_TOKEN: must differ from ADMIN_TOKEN")
}

// Tokens are read without the white space around them, and are never printed.
func TestTokens(t *testing.T) {
	s, err := parse([]string{"ADMIN_TOKEN=open-sesame-open, open barley open\n"}, needs{})
	require.NoError(t, err)
	require.Equal(t, service.Tokens{secret.New("open-sesame-open"), secret.New("open barley open")}, s.Admin.Tokens)
	text, err := json.Marshal(s.Admin)
	require.NoError(t, err)
	for _, shown := range []string{fmt.Sprintf("%v %+v %#v", s, s.Admin, s.Admin), string(text)} {
		require.NotContains(t, shown, "sesame")
		require.NotContains(t, shown, "barley")
	}
}

// PORT is where platforms tell a process to listen.
func TestPort(t *testing.T) {
	for _, tc := range []struct {
		environment []string
		own         map[string]string
		want        service.Address
	}{
		{environment: []string{"PORT=80"}, want: ":80"},
		{environment: []string{"PORT=80", "LISTEN="}, want: ":80"},
		{environment: []string{"PORT=80", "LISTEN=:81"}, want: ":81"},
		{environment: []string{"PORT="}, want: ":8000"},
		{[]string{"PORT=80"}, map[string]string{"LISTEN": "127.0.0.1:8000"}, "127.0.0.1:80"},
	} {
		s, err := parse(tc.environment, needs{defaults: tc.own})
		require.NoError(t, err)
		require.Equal(t, tc.want, s.Listen.Address, tc.environment)
	}
	_, err := parse([]string{"PORT=http"}, needs{})
	require.ErrorContains(t, err, "LISTEN: must be HOST:PORT")
}

func TestSettingThatMustBeSet(t *testing.T) {
	n := needs{required: []string{"DATABASE_URL"}}
	_, err := parse([]string{"DATABASE_URL="}, n)
	require.EqualError(t, err, "DATABASE_URL: must be set (or give --database-url)")
	require.ErrorAs(t, err, new(misuseError))

	_, err = parse([]string{"DATABASE_URL=postgres://db/x"}, n)
	require.NoError(t, err)
}

func TestDefaults(t *testing.T) {
	s, err := parse(nil, needs{})
	require.NoError(t, err)
	require.Equal(t, service.Settings{
		Log:    service.LogSettings{Level: service.LogLevel(zerolog.InfoLevel), Format: observe.Auto},
		Pool:   service.PoolSettings{MaxConns: 8},
		Schema: service.SchemaSettings{Migrate: true},
		Listen: service.ListenSettings{Address: ":8000"},
		Server: service.ServerSettings{IdleTimeout: 11 * time.Minute},
		Stop:   service.StopSettings{Timeout: 20 * time.Second},
		Intake: service.IntakeSettings{
			MaxBodyBytes: 1 << 20, MaxInFlightBytes: 256 << 20, DefaultSource: "closed",
		},
		Secrets: service.SecretSettings{
			Env: service.SecretPatterns{"*_WEBHOOK_SECRET", "*_SIGNING_SECRET", "SPINE_SECRET_*"}, Dir: "/run/secrets",
		},
		AdminListen: service.AdminListenSettings{Address: "127.0.0.1:8003"},
		Worker:      service.WorkerSettings{Concurrency: 64, Lease: 15 * time.Second},
		Destination: service.DestinationSettings{Timeout: 10 * time.Second},
		Retry:       service.RetrySettings{MaxAttempts: 5, InitialDelay: time.Second, MaxDelay: time.Minute},
		Mock:        service.MockSettings{FailureRate: 0.5},
		Dev:         service.DevSettings{MockListen: "127.0.0.1:8001"},
	}, s)
}

func TestPrecedence(t *testing.T) {
	own := needs{defaults: map[string]string{"LISTEN": ":1", "SHUTDOWN_TIMEOUT": "3"}}
	for _, tc := range []struct {
		name        string
		environment []string
		args        []string
		want        service.Address
	}{
		{"the subcommand's own default", nil, nil, ":1"},
		{"an empty variable is an unset one", []string{"LISTEN="}, nil, ":1"},
		{"environment over default", []string{"LISTEN=:2"}, nil, ":2"},
		{"flag over environment", []string{"LISTEN=:2"}, []string{"--listen", ":3"}, ":3"},
		{"an empty flag takes the environment back", []string{"LISTEN=:2"}, []string{"--listen", ""}, ":1"},
	} {
		t.Run(tc.name, func(t *testing.T) {
			s, err := parse(tc.environment, own, tc.args...)
			require.NoError(t, err)
			require.Equal(t, tc.want, s.Listen.Address)
			require.Equal(t, 3*time.Second, s.Stop.Timeout, "an own default goes through the same parser")
		})
	}
}

func TestRetention(t *testing.T) {
	for text, want := range map[string]time.Duration{"0": 0, "1h": time.Hour, "3600": time.Hour, "30d": 720 * time.Hour} {
		s, err := parse([]string{"RETENTION=" + text}, needs{})
		require.NoError(t, err, text)
		require.Equal(t, want, s.Upkeep.Retention, text)
	}
}

func TestRetentionIsAFlagOfEveryProcess(t *testing.T) {
	for _, command := range []string{"serve", "api", "worker", "dev"} {
		_, help := runLine(t, nil, command, "--help")
		require.Regexp(t, `--retention DURATION +keep .* \[RETENTION\] \(default 0s\)\n`, help, command)
	}
}

func TestValuesAreReadWhateverTheirCase(t *testing.T) {
	s, err := parse([]string{"LOG_LEVEL=Warn", "LOG_FORMAT=JSON"}, needs{}, "--migrate=FALSE")
	require.NoError(t, err)
	require.Equal(t, service.LogLevel(zerolog.WarnLevel), s.Log.Level)
	require.Equal(t, observe.JSON, s.Log.Format)
	require.False(t, s.Schema.Migrate)
}

func TestHelpShowsVariableAndDefaultButNoValue(t *testing.T) {
	code, help := runLine(t, []string{"LISTEN=:9999"}, "mock-api", "--help")
	require.Zero(t, code)
	require.Regexp(t, `--mock-api-failure-rate NUMBER +share .* \[MOCK_API_FAILURE_RATE\] \(default 0\.5\)\n`, help)
	require.Regexp(t, `--listen HOST:PORT +where .* \[LISTEN\] \(default :8001\)\n`, help)
	require.NotContains(t, help, "9999")
	require.NotContains(t, help, "DATABASE_URL", "a setting that does not concern it")
}

func TestOnlyTheGivenEnvironmentCounts(t *testing.T) {
	t.Setenv("MAX_RETRY_ATTEMPTS", "7")
	s, err := parse(nil, needs{})
	require.NoError(t, err)
	require.Equal(t, 5, s.Retry.MaxAttempts)
}
