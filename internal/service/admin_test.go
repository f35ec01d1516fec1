package service

import (
	"testing"

	"github.com/stretchr/testify/require"

	"github.com/webhookspine/spine/internal/secret"
)

// A3, A4: without a token the administration is open only on a listener of its own that nothing but this machine
// reaches. What a request looks like plays no part.
func TestWhereTheAdministrationIsServed(t *testing.T) {
	api, workerOnly := Roles{API: true}, Roles{Worker: true}
	token := Tokens{secret.New("open-sesame-open")}
	for name, c := range map[string]struct {
		roles       Roles
		listen, own string
		auth        AdminAuth
		tokens      Tokens
		metrics     Address
		want        administration
		wrong       string
	}{
		"by default": {
			roles: api, listen: ":8000", own: "127.0.0.1:8003",
			want: administration{"127.0.0.1:8003", byThisMachine},
		},
		"by name": {
			roles: api, listen: ":8000", own: "localhost:8003",
			want: administration{"localhost:8003", byThisMachine},
		},
		"IPv6": {
			roles: api, listen: ":8000", own: "[::1]:8003",
			want: administration{"[::1]:8003", byThisMachine},
		},
		"free ports": {
			roles: api, listen: "127.0.0.1:0", own: "localhost:0",
			want: administration{"localhost:0", byThisMachine},
		},
		"all interfaces": {roles: api, listen: ":8000", own: ":8003", wrong: "ADMIN_LISTEN: others than this machine"},
		"a network": {
			roles: api, listen: ":8000", own: "10.0.0.1:8003",
			wrong: "ADMIN_LISTEN: others than this machine",
		},
		"a name": {
			roles: api, listen: ":8000", own: "spine:8003",
			wrong: "ADMIN_LISTEN: others than this machine",
		},
		"same": {
			roles: api, listen: "127.0.0.1:8000", own: "same",
			wrong: "ADMIN_LISTEN: must not be the address of LISTEN",
		},
		"the same": {
			roles: api, listen: "127.0.0.1:8000", own: "127.0.0.1:8000",
			wrong: "ADMIN_LISTEN: must not be the address of LISTEN",
		},
		"one of LISTEN's": {
			roles: api, listen: ":8000", own: "127.0.0.1:8000",
			wrong: "ADMIN_LISTEN: must not be the address of LISTEN",
		},
		"by another name": {
			roles: api, listen: "localhost:8000", own: "127.0.0.1:8000",
			wrong: "ADMIN_LISTEN: must not be the address of LISTEN",
		},
		"with a token": {
			roles: api, listen: ":8000", own: "same", tokens: token,
			want: administration{"", byToken},
		},
		"elsewhere with one": {
			roles: api, listen: ":8000", own: ":8003", tokens: token,
			want: administration{":8003", byToken},
		},
		"openly": {
			roles: api, listen: ":8000", own: ":8000", auth: "none",
			want: administration{"", byEveryone},
		},
		"dev": {
			roles: api, listen: "127.0.0.1:8000", own: "same", auth: authLocal,
			want: administration{"", byThisMachine},
		},
		"a worker": {
			roles: workerOnly, listen: ":8002", own: "127.0.0.1:8003",
			want: administration{"", byNobody},
		},
		"a worker here":         {roles: workerOnly, listen: "127.0.0.1:8002", want: administration{"", byThisMachine}},
		"a worker with a token": {roles: workerOnly, listen: ":8002", tokens: token, want: administration{"", byToken}},
		"a worker, openly": {
			roles: workerOnly, listen: ":8002", auth: "none",
			want: administration{"", byEveryone},
		},
		"metrics elsewhere": {
			roles: api, listen: ":8000", own: "127.0.0.1:8003", metrics: ":9090",
			want: administration{"127.0.0.1:8003", byThisMachine},
		},
		"metrics at LISTEN": {
			roles: api, listen: ":8000", own: "127.0.0.1:8003", metrics: ":8000",
			wrong: "METRICS_LISTEN: must be another",
		},
		"metrics at ADMIN_LISTEN": {
			roles: api, listen: ":8000", own: "127.0.0.1:8003", metrics: ":8003", wrong: "METRICS_LISTEN: must be another",
		},
	} {
		t.Run(name, func(t *testing.T) {
			got, err := administrationOf(&Settings{
				Listen:      ListenSettings{Address: Address(c.listen)},
				Admin:       AdminSettings{Tokens: c.tokens, Auth: c.auth},
				AdminListen: AdminListenSettings{Address: AdminAddress(c.own)},
				Metrics:     MetricsSettings{Address: c.metrics},
			}, c.roles)
			if c.wrong != "" {
				require.ErrorContains(t, err, c.wrong)
				require.ErrorAs(t, err, new(SettingError))
				return
			}
			require.NoError(t, err)
			require.Equal(t, c.want, got)
		})
	}
}

// spine dev needs no token where only this machine reaches it, and opens nothing to others.
func TestAdministrationOfDev(t *testing.T) {
	for name, c := range map[string]struct {
		listen  Address
		own     AdminAddress
		admin   AdminSettings
		want    AdminAuth
		wantOwn AdminAddress
	}{
		"by default":        {listen: "127.0.0.1:8000", own: "same", want: authLocal, wantOwn: "same"},
		"on all interfaces": {listen: ":8000", own: "same", wantOwn: "127.0.0.1:8003"},
		"elsewhere":         {listen: "127.0.0.1:8000", own: "127.0.0.1:9", wantOwn: "127.0.0.1:9"},
		"openly": {
			listen: ":8000", own: "same", admin: AdminSettings{Auth: "none"},
			want: "none", wantOwn: "same",
		},
		"with a token": {
			listen: ":8000", own: "same", admin: AdminSettings{Tokens: Tokens{secret.New("a")}}, wantOwn: "same",
		},
	} {
		t.Run(name, func(t *testing.T) {
			s := Settings{
				Listen: ListenSettings{
					Address: c.listen,
				},
				Admin:       c.admin,
				AdminListen: AdminListenSettings{Address: c.own},
			}
			s.ServeAdminLocally()
			require.Equal(t, c.want, s.Admin.Auth)
			require.Equal(t, c.wantOwn, s.AdminListen.Address)
			_, err := administrationOf(&s, Roles{API: true, Worker: true})
			require.NoError(t, err)
		})
	}
}

// The line at the start shows of the destination only the host.
func TestHostOfDestination(t *testing.T) {
	require.Equal(t, "app.example.com:8443", hostOf("https://user:sesame@app.example.com:8443/hooks/sesame?key=sesame"))
	require.Contains(t, hostOf(""), "none")
}
