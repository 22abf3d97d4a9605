"""What a program may ask of the kernel. What is not here is, to it, not implemented.

Left out is whatever makes memory that belongs to no process (memory files, System V objects, message queues, AIO, BPF,
io_uring, keys, watches of files), reaches other processes' memory or descriptors, changes namespaces, mounts or users,
and every socket but a pair within the program.
"""

from __future__ import annotations

import platform

# name:number on x86_64:number on aarch64, of Linux 6.6; files, descriptors, memory, processes, time and limits
_TABLE = """
read:0:63 write:1:64 readv:19:65 writev:20:66 pread64:17:67 pwrite64:18:68 preadv:295:69 pwritev:296:70
preadv2:327:286 pwritev2:328:287 open:2:- openat:257:56 openat2:437:437 creat:85:- close:3:57 close_range:436:436
lseek:8:62 stat:4:- fstat:5:80 lstat:6:- newfstatat:262:79 statx:332:291 statfs:137:43 fstatfs:138:44 access:21:-
faccessat:269:48 faccessat2:439:439 readlink:89:- readlinkat:267:78 getdents:78:- getdents64:217:61 getcwd:79:17
chdir:80:49 fchdir:81:50 mkdir:83:- mkdirat:258:34 rmdir:84:- unlink:87:- unlinkat:263:35 rename:82:- renameat:264:38
renameat2:316:276 link:86:- linkat:265:37 symlink:88:- symlinkat:266:36 chmod:90:- fchmod:91:52 fchmodat:268:53
fchmodat2:452:452 chown:92:- fchown:93:55 lchown:94:- fchownat:260:54 utime:132:- utimes:235:- utimensat:280:88
futimesat:261:- truncate:76:45 ftruncate:77:46 fallocate:285:47 fsync:74:82 fdatasync:75:83 fadvise64:221:223
umask:95:166 flock:73:32 getxattr:191:8 lgetxattr:192:9 fgetxattr:193:10 listxattr:194:11 llistxattr:195:12
flistxattr:196:13 sendfile:40:71 copy_file_range:326:285

dup:32:23 dup2:33:- dup3:292:24 fcntl:72:25 ioctl:16:29 pipe:22:- pipe2:293:59 select:23:- pselect6:270:72 poll:7:-
ppoll:271:73 epoll_create:213:- epoll_create1:291:20 epoll_ctl:233:21 epoll_wait:232:- epoll_pwait:281:22
epoll_pwait2:441:441 eventfd:284:- eventfd2:290:19 timerfd_create:283:85 timerfd_settime:286:86 timerfd_gettime:287:87
signalfd:282:- signalfd4:289:74 socketpair:53:199 sendto:44:206 recvfrom:45:207 recvmsg:47:212 shutdown:48:210
getsockname:51:204 getpeername:52:205 getsockopt:55:209

brk:12:214 mmap:9:222 munmap:11:215 mprotect:10:226 mremap:25:216 madvise:28:233 mincore:27:232 msync:26:227
mlock:149:228 mlock2:325:284 munlock:150:229 mlockall:151:230 munlockall:152:231

clone:56:220 fork:57:- vfork:58:- execve:59:221 execveat:322:281 exit:60:93 exit_group:231:94 wait4:61:260
waitid:247:95 kill:62:129 tkill:200:130 tgkill:234:131 rt_sigaction:13:134 rt_sigprocmask:14:135 rt_sigreturn:15:139
rt_sigpending:127:136 rt_sigtimedwait:128:137 rt_sigqueueinfo:129:138 rt_tgsigqueueinfo:297:240 rt_sigsuspend:130:133
sigaltstack:131:132 pause:34:- alarm:37:- getitimer:36:102 setitimer:38:103 restart_syscall:219:128
set_tid_address:218:96 set_robust_list:273:99 futex:202:98 rseq:334:293 membarrier:324:283 sched_yield:24:124
sched_getaffinity:204:123 sched_setaffinity:203:122 sched_getparam:143:121 sched_getscheduler:145:120
sched_get_priority_max:146:125 sched_get_priority_min:147:126 sched_rr_get_interval:148:127 getpriority:140:141
setpriority:141:140 getcpu:309:168 prctl:157:167 arch_prctl:158:- pidfd_open:434:434 pidfd_send_signal:424:424
getpid:39:172 getppid:110:173 gettid:186:178 getpgid:121:155 getpgrp:111:- getsid:124:156 setpgid:109:154
setsid:112:157 getuid:102:174 geteuid:107:175 getgid:104:176 getegid:108:177 getresuid:118:148 getresgid:120:150
getgroups:115:158 capget:125:90

nanosleep:35:101 clock_nanosleep:230:115 clock_gettime:228:113 clock_getres:229:114 gettimeofday:96:169 time:201:-
times:100:153 timer_create:222:107 timer_settime:223:110 timer_gettime:224:108 timer_getoverrun:225:109
timer_delete:226:111 getrusage:98:165 getrlimit:97:163 setrlimit:160:164 prlimit64:302:261 sysinfo:99:179 uname:63:160
getrandom:318:278
"""
_COLUMN = {"x86_64": 1, "aarch64": 2}


def numbers() -> dict[str, int]:
    """name -> number on this machine, of the calls it has. Raises OSError: they are not known."""
    column = _COLUMN.get(platform.machine())
    if column is None:
        raise OSError(f"the system calls of {platform.machine()} are not known")
    entries = (entry.split(":") for entry in _TABLE.split())
    return {entry[0]: int(entry[column]) for entry in entries if entry[column] != "-"}
